"""A VAE trains, is sampled and measured by the loop, the modes and the metrics of diffusion."""

import json
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from experiments import devices, train
from experiments.build import build
from experiments.configs import vae_digits
from experiments.data.dataset import read_images
from experiments.figures import page
from experiments.figures.autoencoder import psnr
from experiments.figures.figure import AUTOENCODER
from experiments.figures.ideas import altered, ring_of
from experiments.metrics import elbo
from experiments.modes import checked
from experiments.state import load_ema
from experiments.weights import export
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments import modes

Make = Callable[[], ConfigDict]
NAMES = ["samples", *(n for n, maker in page.FIGURES.items() if AUTOENCODER in maker.needs)]


def examples(experiment, memory):
    x = jnp.zeros((4, *experiment.dataset.image_shape))
    keys = jax.random.split(jax.random.key(0), 4)
    return experiment.method.draw(memory, x, jnp.zeros(4, jnp.int32), lambda name: keys)


def test_it_trains_and_its_log_tells_both_terms(vae_run: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (vae_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["reconstruction"] > 0 and line["kl"] >= 0
        assert line["loss"] <= line["reconstruction"] + line["kl"] + 1e-5


def test_the_weight_of_the_divergence_rises_and_stays(tiny_vae: Make) -> None:
    config = tiny_vae()
    config.method.kl_weight, config.method.kl_warmup_steps = 0.5, 4
    experiment = build(config)
    weights = [float(examples(experiment, jnp.int32(n)).kl_weight[0]) for n in range(6)]
    np.testing.assert_allclose(weights, [0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    config.method.kl_warmup_steps = 0
    assert float(examples(build(config), jnp.int32(0)).kl_weight[0]) == 0.5


def test_the_loss_is_the_weighted_bound_of_an_image_by_its_values(tiny_vae: Make) -> None:
    """Twice the weight adds the divergence once more."""
    config, found = tiny_vae(), []
    for weight in (1.0, 2.0):
        config.method.kl_weight, config.method.kl_warmup_steps = weight, 0
        method = build(config).method
        params = jax.tree.map(lambda p: p + 0.05, method.init(jax.random.key(0)))
        losses, terms = method.losses(
            params, examples(build(config), jnp.int32(0)), jax.random.key(1)
        )
        found.append(losses)
    np.testing.assert_allclose(found[1] - found[0], terms.kl, rtol=1e-4)
    np.testing.assert_allclose(found[0], terms.reconstruction + terms.kl, rtol=1e-5)


def test_a_warmup_goes_on_where_it_was_interrupted(tiny_vae: Make, tmp_path: pathlib.Path) -> None:
    """Four steps and four more are eight: the step count of the warm-up is in the checkpoint."""
    config = tiny_vae()
    config.method.kl_warmup_steps = 100
    for name, stops in (("once", (8,)), ("twice", (4, 8))):
        for steps in stops:
            config.train.num_steps = steps
            assert train.train(build(config), tmp_path / name) is Outcome.FINISHED
    one, other = (
        load_ema(build(config), tmp_path / name, devices.make_mesh()).params
        for name in ("once", "twice")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_its_metrics_are_the_bound_and_what_improves_it(
    tiny_vae: Make, vae_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_vae()
    config.evaluate.metrics, config.evaluate.num_importance = "elbo", 32
    experiment = build(config)
    values = modes.evaluate(experiment, vae_run)["elbo"]
    bits = values["bits_per_dim"]["value"]
    parts = values["reconstruction"]["value"] + values["kl"]["value"]
    assert bits == pytest.approx(parts, rel=1e-5)
    (shown,) = [row for row in capsys.readouterr().out.splitlines() if "reconstruction" in row]
    of_row = [float(number) for number in re.findall(r"\d+\.\d{3}", shown.split("+-")[0])]
    assert of_row == [pytest.approx(bits, abs=1e-3)]  # what is split, on the row of its parts
    assert values["iwae_bits_per_dim"]["value"] < bits
    nats = values["nats_per_image"]["value"]
    assert nats == pytest.approx(bits * 64 * np.log(2), rel=1e-6)
    assert 0 <= values["active_units"]["value"] <= 32 == values["active_units"]["of"]
    section = read_results(vae_run)["elbo"]
    assert section["protocol"]["likelihood"]["name"] == "discretized_logistic"

    model = experiments.load(vae_run)
    held_out = read_images(experiment.dataset.open("test"), 0, 10)["image"]
    vae = experiment.method.vae
    x = experiment.encoder.encode(jnp.asarray(held_out))
    rebuilt = vae.likelihood.mean(vae.decode(model.params, vae.encode(model.params, x).mean))
    mse = np.square(np.clip(rebuilt, -1, 1) - x).reshape(10, -1).mean(1)
    assert values["psnr"]["value"] == pytest.approx((10 * np.log10(4 / mse)).mean(), rel=1e-3)


def test_an_interrupted_measurement_goes_on(
    tiny_vae: Make, vae_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before is read; the result is the same."""
    config = tiny_vae()
    config.evaluate.metrics, config.evaluate.num_importance = "elbo", 2
    whole = modes.evaluate(build(config), vae_run)["elbo"]
    calls = []

    def compiled(context, function):
        made = original(context, function)

        def counted(*arguments):
            if len(calls) == 1:
                calls.append("stopped")
                raise KeyboardInterrupt
            calls.append("batch")
            return made(*arguments)

        return counted

    original = elbo.compiled
    monkeypatch.setattr(elbo, "compiled", compiled)
    with pytest.raises(KeyboardInterrupt):
        modes.evaluate(build(config), vae_run)
    again = modes.evaluate(build(config), vae_run)["elbo"]
    assert calls == ["batch", "stopped", "batch"]
    assert again == whole


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("likelihood", dict(name="gaussian", deviation=0.1), "elbo is in bits per dimension"),
        ("likelihood", dict(name="bernoulli"), "a density or a cross entropy"),
        ("evaluate.metrics", "bpd", "The metric bpd needs the timesteps"),
        ("evaluate.metrics", "latent_bound", "The metric latent_bound needs the timesteps"),
    ],
)
def test_numbers_that_would_be_none_are_refused(tiny_vae: Make, field, value, words) -> None:
    config = tiny_vae()
    config.evaluate.metrics = "elbo"
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=words):
        checked(config, ("evaluate",))


def test_there_is_nothing_of_a_chain_in_its_config(tiny_vae: Make) -> None:
    config = tiny_vae()
    assert not {"schedule", "parameterization", "variance", "loss", "timesteps"} & set(config)
    with pytest.raises(ValueError, match="Did you mean 'vae'"):
        config.method = ConfigDict(dict(name="vea"))
        build(config)


def test_samples_are_of_their_own_key(tiny_vae: Make, vae_run: pathlib.Path) -> None:
    model = experiments.load(vae_run)
    few, many = model.sample(3, seed=5), model.sample(9, seed=5)
    np.testing.assert_array_equal(few, many[:3])
    assert not np.array_equal(many[0], many[1])
    with pytest.raises(ValueError, match="needs the timesteps of a diffusion process"):
        model.schedule  # noqa: B018
    with pytest.raises(ValueError, match="told no captions"):
        model.sample(prompts=["red"])


def test_its_figures(tiny_vae: Make, vae_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = tiny_vae()
    config.figures.update(dict(rows=4, columns=5, names=",".join(NAMES)))
    experiment = build(config)
    loaded = load_ema(experiment, vae_run, devices.make_mesh())
    made = page.figures(experiment, tmp_path, loaded, devices.make_mesh())
    assert [path.stem for path in made] == NAMES
    arrays = {path.stem: np.load(path.with_suffix(".npz")) for path in made}
    np.testing.assert_allclose(
        arrays["reconstructions"]["psnr"],
        psnr(arrays["reconstructions"]["real"], arrays["reconstructions"]["rebuilt"]),
    )
    between = arrays["latent_interpolation"]
    assert between["decoded"].shape == between["blended"].shape == (2, 5, 8, 8, 1)
    assert arrays["latent_grid"]["pictures"].shape == (5, 5, 8, 8, 1)
    assert arrays["traversals"]["pictures"].shape == (4, 5, 8, 8, 1)
    config.figures.names = "forward"
    with pytest.raises(ValueError, match="forward, which this model cannot have"):
        page.check(build(config))


def test_figures_of_ideas(tiny_vae: Make, vae_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """They are no part of `all`, and of any model."""
    config = tiny_vae()
    figures = page.FIGURES.items()
    names = [n for n, maker in figures if maker.idea and not (maker.needs or maker.of_images)]
    assert {"ring", "tangents", "one_step"} <= set(names)
    assert not set(names) & set(page.figure_names(config.figures))
    config.figures.names = ",".join(names)
    experiment = build(config)
    loaded = load_ema(experiment, vae_run, devices.make_mesh())
    made = page.figures(experiment, tmp_path, loaded, devices.make_mesh())
    assert len(made) == len(names)
    x = np.load(tmp_path / "ring.npz")["x"]
    radius = np.linalg.norm(x, axis=1)
    assert radius.min() >= 1.0 and np.abs(x.mean(0)).max() < 0.1
    np.testing.assert_allclose(ring_of(np.array([[3.0, 4.0]])), [[0.9, 1.2]])


def test_a_shift_is_far_in_pixels_and_a_hole_is_near() -> None:
    """On stripes, the extreme case: every pixel changes by a shift, none beside the hole."""
    stripes = np.zeros((1, 16, 16, 1), np.uint8)
    stripes[:, :, ::2] = 255
    changed = altered(stripes)
    errors = {
        name: np.square(stripes.astype(float) - other).mean() for name, other in changed.items()
    }
    assert errors["shifted by a pixel"] > 5 * errors["a hole in the middle"]
    assert psnr(stripes, stripes)[0] == 100.0


def test_a_config_of_the_other_method_is_told_what_it_lacks(tiny: Make, tiny_vae: Make) -> None:
    config = tiny()
    config.method = ConfigDict(dict(name="vae"))
    with pytest.raises(ValueError, match="'vae' needs config.likelihood, .*vae_digits.py"):
        build(config)
    config = tiny_vae()
    config.method = ConfigDict(dict(name="diffusion"))
    with pytest.raises(ValueError, match="'diffusion' needs config.schedule, config.param"):
        build(config)
    with pytest.raises(ValueError, match="'mu_mse' is of diffusion: it changes config.loss"):
        vae_digits.get_config("mu_mse")


def test_a_checkpoint_is_not_chosen_by_a_number_that_it_has_not(tiny_vae: Make) -> None:
    config = tiny_vae()
    config.train.validate_every = 4
    with pytest.raises(ValueError, match="validate_with = 'bpd_fast' needs the timesteps"):
        build(config)


def test_it_is_not_written_for_diffusers(vae_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    experiment = experiments.load(vae_run).experiment
    with pytest.raises(ValueError, match="--to=diffusers needs the timesteps"):
        export.write_diffusers(experiment, vae_run, tmp_path / "out", "ema")


def test_figures_of_a_way_need_a_chain(tiny_vae: Make) -> None:
    """By name they are refused with those that can be; "all" leaves them out."""
    config = tiny_vae()
    for name in ("progressive", "quality"):
        config.figures.names = f"samples,{name}"
        with pytest.raises(
            ValueError,
            match=f"`{name}` needs the method `diffusion`. Leave .*samples, .*traversals",
        ):
            page.check(build(config))
    config.figures.names = "all"
    names, _ = page.wanted(build(config))
    assert {"samples", "traversals"} <= set(names) and not {"progressive", "quality"} & set(names)
