"""Weights that diffusers saved are the same models here, to the last step of a chain."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion.samplers
import diffusion.walk
import experiments
from experiments import devices
from experiments.build import build
from experiments.configs import by_size, image_folder
from experiments.experiment import Experiment
from experiments.state import load_ema
from experiments.weights import importer
from experiments.workdir.config import read_config
from tests.diffusion.walks import sample
from tests.experiments.weights.published_configs import base_config
from tests.fixtures.published import FOLDER, MODELS, NUM_STEPS, STEP, TIMESTEPS, noise

NAMES = list(MODELS)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Experiment, Any]]:
    """Each fixture through a working directory: the experiment and its EMA parameters."""
    result = {}
    for name in NAMES:
        workdir = tmp_path_factory.mktemp("converted") / name
        importer.import_weights(str(FOLDER / name), workdir, base_config(name), None)
        experiment = build(read_config(workdir))
        result[name] = (experiment, load_ema(experiment, workdir, devices.make_mesh()).params)
    return result


def test_a_config_of_any_pictures_is_filled_by_what_the_weights_say(
    tmp_path: pathlib.Path,
) -> None:
    """Size, network and process are the weights', and what else is open follows the size."""
    name = "ddpm-celebahq-256"
    importer.import_weights(str(FOLDER / name), tmp_path / "run", image_folder.get_config(), None)
    config = read_config(tmp_path / "run")
    assert (config.data.image_size, config.model.channels) == (64, 4)
    filled = {
        field: getter(64) for field, getter in by_size.BY_SIZE.items() if "model" not in field
    }
    assert filled == {f: config[f.split(".")[0]][f.split(".")[1]] for f in filled}
    model = experiments.load(FOLDER / name, config=image_folder.get_config())
    assert model.experiment.dataset.image_shape == (64, 64, 3)
    small = image_folder.get_config()
    small.data.image_size = 32
    with pytest.raises(ValueError, match=r"is for images \(64, 64, 3\), .* has \(32, 32, 3\)"):
        experiments.load(FOLDER / name, config=small)


@pytest.fixture(scope="module")
def outputs() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "outputs.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_repeats_the_output_of_diffusers(name, converted, outputs) -> None:
    experiment, params = converted[name]
    x = noise(MODELS[name].image_shape, 1)[0]
    with jax.default_matmul_precision("highest"):
        output = jax.jit(experiment.method.chain.network.apply)(
            {"params": params}, x, jnp.array(TIMESTEPS)
        )
    expected = outputs[f"{name}/forward"]
    assert 0.3 < expected.std() < 3.0
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def given_noise(monkeypatch: pytest.MonkeyPatch, draws: np.ndarray) -> None:
    """The sampler's noise at timestep t is draws[t], and x_T the last of them."""
    table = jnp.asarray(draws)
    monkeypatch.setattr(diffusion.walk, "normal", lambda keys, t, shape: table[t - 1])


@pytest.mark.parametrize("name", NAMES)
def test_an_ancestral_step_repeats_that_of_diffusers(name, converted, outputs) -> None:
    experiment, params = converted[name]
    draws = noise(MODELS[name].image_shape, 2)
    _, denoise, levels = experiment.method.chain.respaced(0)

    @jax.jit
    def step(params: Any, x_t: jax.Array, z: jax.Array) -> jax.Array:
        def bound(x, t):
            return denoise(params, x, t)

        t = jnp.int32(STEP)
        return diffusion.samplers.ancestral(levels).step(bound, x_t, t, lambda _: z, ())[0]

    actual = step(params, draws[0], draws[1])
    np.testing.assert_allclose(actual, outputs[f"{name}/step"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_respaced_chain_repeats_that_of_diffusers(name, converted, outputs, monkeypatch) -> None:
    experiment, params = converted[name]
    shape = MODELS[name].image_shape
    given_noise(monkeypatch, noise(shape, NUM_STEPS + 1))
    _, denoise, levels = experiment.method.chain.respaced(NUM_STEPS)

    @jax.jit
    def chain(params: Any) -> jax.Array:
        def bound(x, t):
            return denoise(params, x, t)

        keys = jax.random.split(jax.random.key(0), 2)
        return sample(diffusion.samplers.ancestral(levels), bound, keys, shape).x_0

    expected = outputs[f"{name}/chain"]
    assert expected.std() > 0.3
    np.testing.assert_allclose(chain(params), expected, rtol=0, atol=1e-3)
