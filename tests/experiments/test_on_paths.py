"""All that a chain has, on every path of the table: training, samples, bounds, editing, figures."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from diffusion.grids import GRIDS
from diffusion.paths import PATHS
from diffusion.samplers import SAMPLERS
from experiments import api, hooks
from experiments.build import build
from experiments.configs import digits, digits_dit, saved
from experiments.configs.continuous import CONTINUOUS
from experiments.data.dataset import read_images
from experiments.figures import process
from experiments.figures.figure import Context
from experiments.methods.latent import pixels
from experiments.methods.walks import walks_of
from experiments.weights.diffusers_config import scheduler_config
from experiments.workdir.outcome import Outcome
from tests.experiments import modes

Make = Callable[[], ConfigDict]
LEVELS = 8
every_path = pytest.mark.parametrize("path", PATHS)


def on_path(config: ConfigDict, path: str, num_timesteps: int = LEVELS) -> ConfigDict:
    """The config with a path for its chain, and a network that untrained is no constant."""
    del config.schedule
    config.path = ConfigDict(dict(name=path, num_timesteps=num_timesteps))
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.variance = ConfigDict(dict(name="fixed_small"))
    return config


@pytest.fixture(scope="module", params=PATHS)
def run(request, tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[api.Model, dict]:
    """One that was interrupted halfway, and read again from its folder."""
    workdir = tmp_path_factory.mktemp(request.param)
    config = on_path(tiny(), request.param)
    config.evaluate.metrics = "bpd,bpd_fast"
    config.train.num_steps, whole = 4, config.train.num_steps
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    config.train.num_steps = whole
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8] and "NaN" not in "".join(lines)
    found = modes.evaluate(build(saved.get_config(str(workdir))), workdir)
    return experiments.load(workdir), found


@pytest.fixture
def model(run: tuple[api.Model, dict]) -> api.Model:
    return run[0]


def pictures(model: api.Model, count: int) -> np.ndarray:
    return read_images(model.experiment.dataset.open("test"), 0, count)["image"]


def test_its_bits_are_the_metric_s(run: tuple[api.Model, dict]) -> None:
    model, found = run
    bits = model.bits_per_dim(pictures(model, 10))
    assert np.isfinite(bits).all()
    assert bits.mean() == pytest.approx(found["bpd"]["bits_per_dim"]["value"], rel=1e-4)


def test_it_is_walked_in_any_number_of_steps(model: api.Model) -> None:
    """More than config.path.num_timesteps too, which are of its bound."""
    few, many = (model.sample(3, steps=steps) for steps in (2, 3 * LEVELS))
    assert few.shape == many.shape and (few != many).any()
    with pytest.raises(ValueError, match="steps = 100001 must be"):
        model.sample(1, steps=100_001)


def test_encoding_noise_is_undone_the_better_the_more_steps(model: api.Model) -> None:
    images = pictures(model, 3)

    def error(steps: int) -> float:
        again = model.decode_noise(model.encode_noise(images, steps=steps), steps=steps)
        return float(np.abs(again.astype(int) - images).mean())

    assert error(80) <= max(0.5 * error(10), 4.0)  # of 255, where levels are 16 apart


def test_what_is_known_stays_where_the_rest_is_completed(model: api.Model) -> None:
    images, mask = pictures(model, 2), np.eye(8)
    found = model.inpaint(images, mask, steps=3, jump_length=2, resamplings=2)
    np.testing.assert_array_equal(found[:, mask == 1], images[:, mask == 1])
    assert (found[:, mask == 0] != images[:, mask == 0]).any()


def test_denoising_is_asked_at_a_row_of_the_schedule(model: api.Model) -> None:
    x = model.encode(pictures(model, 2))
    assert np.isfinite(model.denoise(x, [0, LEVELS - 1])).all()
    with pytest.raises(ValueError, match=f"from 0 to {LEVELS - 1}"):
        model.denoise(x, LEVELS)


def test_the_forward_figure_shows_equal_steps_of_the_noises_share(model: api.Model) -> None:
    experiment = model.experiment
    experiment.config.figures.update(dict(rows=1, columns=4))
    context = Context(experiment, model.params, model._mesh, experiment.method.chain)
    times = process.forward(context).arrays["timesteps"]
    share = np.asarray(model.schedule.noise / (model.schedule.noise + model.schedule.signal))
    assert (times[0], times[-1]) == (0, LEVELS - 1) and len(times) == 3
    middle = np.abs(share - 0.5 * (share[0] + share[-1]))
    assert middle[times[1]] == middle.min()


@pytest.mark.slow  # 300 samplers are made
@every_path
def test_every_sampler_walks_it_at_its_own_spacing_and_others(tiny: Make, path: str) -> None:
    """Where a spacing does not serve, the refusal names one that does."""
    config = on_path(tiny(), path)
    encoder = pixels(build(config).dataset)
    for name in SAMPLERS:
        config.sample.sampler = ConfigDict(dict(name=name))
        for spacing in ("auto", *GRIDS):
            config.sample.spacing = ConfigDict(dict(name=spacing))
            walks = walks_of(config, encoder)
            levels = walks.levels(3)[1]
            if walks.flags.needs_signal and not levels.signal[-1] > 0.0:
                with pytest.raises(ValueError, match="this path ends in.*log_snr or karras"):
                    walks.sampler(levels)
                assert spacing not in ("auto", "log_snr", "karras")
            else:
                assert walks.sampler(levels).num_steps >= 3


@every_path
@pytest.mark.parametrize("data_variance", [0.01, 1.0])
def test_its_levels_cost_the_bound_next_to_nothing(
    tiny: Make, path: str, data_variance: float
) -> None:
    """Of Gaussian data known exactly, sum of (SNR_{t-1} - SNR_t) E|x_0 - x_0_hat|^2 / 2.

    Its limit of many levels is the integral log(1 + variance SNR) / 2 between the ends (VDM Eq.
    17); what is beyond it falls as the levels' distance.
    """

    def excess(num_timesteps: int) -> float:
        chain = build(on_path(tiny(), path, num_timesteps)).method.chain
        snr = np.exp(2.0 * chain.levels.log_ratio[1:])
        terms = -np.diff(snr) * data_variance / (1.0 + data_variance * snr[1:])
        between = np.log1p(data_variance * snr[0]) - np.log1p(data_variance * snr[-1])
        return float(terms.sum() / between - 1.0)

    assert 0.0 < excess(1000) < 0.021
    assert excess(250) / excess(1000) == pytest.approx(4.0, rel=0.1)


@every_path
def test_it_is_not_written_for_a_program_of_chains(tiny_unet: Make, path: str) -> None:
    with pytest.raises(ValueError, match=f"config.path = {path}: .*in continuous time cannot"):
        scheduler_config(on_path(tiny_unet(), path))


@pytest.mark.parametrize("ablation", CONTINUOUS)
@pytest.mark.parametrize("config", [digits, digits_dit])
def test_of_the_digits_a_path_begins_where_their_chain_does(config, ablation: str) -> None:
    """At the noise beside which 17 grey levels can be told apart."""
    first = [
        walks_of(each, pixels(build(each).dataset)).whole.log_ratio[1]
        for each in (config.get_config(), config.get_config(ablation))
    ]
    assert math.exp(first[0] - first[1]) == pytest.approx(1.0, rel=0.02)
