"""Whole walks along paths against diffusers' schedulers of EDM and of flow matching.

On the same noise levels, of one network. Their last step goes to no noise at all, as ours does;
`init_noise_sigma` is EDM's sqrt(sigma_max^2 + 1) there and the path's own deviation here, so that
both begin at the same x_T.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with diffusers needs the parity extra")
diffusers = pytest.importorskip(
    "diffusers", reason="comparing with diffusers needs the parity extra"
)

from diffusion import grids, thresholds  # noqa: E402
from diffusion.parameterizations import PARAMETERIZATIONS, WITH_OPTIONS  # noqa: E402
from diffusion.paths import PATHS, grid  # noqa: E402
from diffusion.reverse import make_denoise  # noqa: E402
from diffusion.samplers import SAMPLERS  # noqa: E402
from diffusion.schedules import from_levels  # noqa: E402
from diffusion.structs import Levels, Parameterization, Process  # noqa: E402
from diffusion.variances import VARIANCES  # noqa: E402
from diffusion.walk import start, walk  # noqa: E402

pytestmark = pytest.mark.parity
X_T = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
EDM, STRAIGHT = PATHS["edm"](), PATHS["straight"]()
SIGMA_DATA = 0.5


def network(numpy: Any, x: Any, told: Any, rate: float) -> Any:
    """An output that is no straight line of x and of what is told, in either library."""
    return 0.6 * numpy.sin(x * (1.0 + rate * told)) + 0.2 * x


def ours(name: str, levels: Levels, each: Parameterization, rate: float) -> np.ndarray:
    assert levels.path is not None
    sampler = SAMPLERS[name](levels)
    process = Process(from_levels(levels), each, VARIANCES["fixed_small"], levels.path)
    denoise = make_denoise(
        lambda params, x, told: network(jnp, x, told[:, None, None, None], rate),
        process,
        threshold=thresholds.none,
    )
    keys = jax.random.split(jax.random.key(0), len(X_T))
    model = functools.partial(denoise, None)
    run = jax.jit(lambda x: walk(sampler, model, keys, start(sampler, x, 0)).x_t)
    return np.asarray(run(levels.path.deviation * X_T))


def theirs(scheduler: Any, deviation: float, output: Any) -> np.ndarray:
    """x_0, where output(x, t, sigma) is what their step is given."""
    x = deviation * torch.from_numpy(X_T).double()
    scheduler.set_begin_index(0)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(output(x, t, sigma), t, x).prev_sample
    return x.numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To float32's rounding of their levels."""
    assert abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def estimate(x: Any, sigma: Any) -> Any:
    """x_0 by EDM Eq. 7 of the network, for a scheduler that knows nothing of it."""
    length = (sigma**2 + SIGMA_DATA**2) ** 0.5
    output = network(torch, x / length, 0.25 * torch.log(sigma), 0.3)
    return (SIGMA_DATA / length) ** 2 * x + sigma * SIGMA_DATA / length * output


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("num_steps", [5, 18, 40])
def test_edm_euler(name: str, num_steps: int) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_data=SIGMA_DATA)
    scheduler.set_timesteps(num_steps)

    def output(x: Any, t: Any, sigma: Any) -> Any:
        return network(torch, scheduler.scale_model_input(x, t), t.double(), 0.3)

    levels = grid(EDM, grids.karras(EDM, num_steps))
    np.testing.assert_allclose(levels.noise[::-1], scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(levels.told[:0:-1], scheduler.timesteps, rtol=1e-5, atol=1e-6)
    expected = theirs(scheduler, EDM.deviation, output)
    close(ours(name, levels, WITH_OPTIONS["edm"](SIGMA_DATA), 0.3), expected)


@pytest.mark.parametrize("name", ["heun", "heun_u"])
@pytest.mark.parametrize("num_steps", [5, 18, 40])
def test_heun_on_edms_levels(name: str, num_steps: int) -> None:
    """Their ends are read from a config that the scheduler itself has no fields for."""
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True, prediction_type="sample")
    scheduler.register_to_config(sigma_min=EDM.start, sigma_max=EDM.end)
    scheduler.set_timesteps(num_steps)
    levels = grid(EDM, grids.karras(EDM, num_steps))
    visited = np.append(scheduler.sigmas[:1], scheduler.sigmas[1::2])
    np.testing.assert_allclose(levels.noise[::-1], visited, rtol=1e-6)
    expected = theirs(scheduler, EDM.deviation, lambda x, t, sigma: estimate(x, sigma.double()))
    close(ours(name, levels, WITH_OPTIONS["edm"](SIGMA_DATA), 0.3), expected)


@pytest.mark.parametrize("num_steps", [1, 5, 28])
@pytest.mark.parametrize("spacing", ["trailing", "uniform"])
def test_flow_matching_euler(spacing: str, num_steps: int) -> None:
    levels = grid(STRAIGHT, grids.GRIDS[spacing](STRAIGHT, num_steps))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=levels.time[:0:-1].tolist())
    np.testing.assert_allclose(levels.told[:0:-1], scheduler.timesteps, rtol=1e-6)
    expected = theirs(
        scheduler, STRAIGHT.deviation, lambda x, t, sigma: network(torch, x, t.double(), 1e-3)
    )
    close(ours("euler", levels, PARAMETERIZATIONS["velocity"], 1e-3), expected)


@pytest.mark.parametrize("num_steps", [2, 5, 28])
def test_flow_matching_heun(num_steps: int) -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    levels = grid(STRAIGHT, grids.uniform(STRAIGHT, num_steps))
    visited = np.append(scheduler.sigmas[:1], scheduler.sigmas[1::2])
    np.testing.assert_allclose(levels.time[::-1], visited, rtol=1e-5)
    expected = theirs(
        scheduler, STRAIGHT.deviation, lambda x, t, sigma: network(torch, x, t.double(), 1e-3)
    )
    close(ours("heun_u", levels, PARAMETERIZATIONS["velocity"], 1e-3), expected)
