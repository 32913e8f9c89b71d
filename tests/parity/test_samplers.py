"""Whole walks against diffusers' schedulers, on the same timesteps and the same network.

Their defaults differ from ours where a table of numbers would not tell: the timesteps, which each
scheduler is asked for here and ours then visits (diffusers' linspace leaves out timestep 0 for some
of them); the last step, to no noise at all (`set_alpha_to_one`, `final_sigmas_type="zero"`); and
what is made of a clipped estimate (theirs keeps the network's eps unless told otherwise).
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

from diffusion import thresholds  # noqa: E402
from diffusion.parameterizations import PARAMETERIZATIONS  # noqa: E402
from diffusion.paths import levels_of  # noqa: E402
from diffusion.reverse import make_denoise  # noqa: E402
from diffusion.samplers import SAMPLERS  # noqa: E402
from diffusion.schedules import BETAS, respace  # noqa: E402
from diffusion.spacings import leading, trailing  # noqa: E402
from diffusion.structs import Process  # noqa: E402
from diffusion.variances import VARIANCES  # noqa: E402
from diffusion.walk import start, walk  # noqa: E402

pytestmark = pytest.mark.parity
T, SHAPE = 1000, (2, 4, 4, 3)
BETA = BETAS["linear"](T)
LINEAR = dict(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
X_T = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def network(numpy: Any, x: Any, t: Any) -> Any:
    """An eps of x and t that is no straight line, in either library."""
    return 0.6 * numpy.sin(x * (1.0 + t / 1000.0)) + 0.2 * x


def theirs(scheduler: Any, num_steps: int, **step: Any) -> tuple[np.ndarray, np.ndarray]:
    """(x_0, the timesteps that were visited, falling)."""
    scheduler.set_timesteps(num_steps)
    x = torch.from_numpy(X_T).double() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = network(torch, scheduler.scale_model_input(x, t), t.double())
        x = scheduler.step(eps, t, x, **step).prev_sample
    return x.numpy(), np.asarray(scheduler.timesteps)


def ours(
    name: str, keep: np.ndarray, threshold: Any = thresholds.none, noise: Any = None, **options: Any
) -> np.ndarray:
    chain = respace(BETA, keep)
    sampler = SAMPLERS[name](levels_of(chain), **options)
    process = Process(chain, PARAMETERIZATIONS["eps"], VARIANCES["fixed_small"])
    denoise = make_denoise(
        lambda params, x, t: network(jnp, x, t[:, None, None, None].astype(jnp.float32)),
        process,
        threshold=threshold,
    )
    keys = jax.random.split(jax.random.key(0), len(X_T))
    model = functools.partial(denoise, None)
    run = jax.jit(lambda x: walk(sampler, model, keys, start(sampler, x, 0)).x_t)
    return np.asarray(run(X_T))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To float32's rounding of their tables, which 1 / sqrt(alpha_bar) = 160 enlarges."""
    assert abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_ddim(spacing: str, num_steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(
        **LINEAR, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    expected, visited = theirs(scheduler, num_steps)
    keep = {"leading": leading, "trailing": trailing}[spacing](T, num_steps)
    np.testing.assert_array_equal(keep, visited[::-1])
    close(ours("ddim", keep), expected)


def test_ddim_of_clipped_estimates() -> None:
    """Their option use_clipped_model_output is what ours always does."""
    scheduler = diffusers.DDIMScheduler(**LINEAR, clip_sample=True)
    expected, visited = theirs(scheduler, 10, use_clipped_model_output=True)
    close(ours("ddim", visited[::-1].copy(), thresholds.clip), expected)
    other, _ = theirs(diffusers.DDIMScheduler(**LINEAR, clip_sample=True), 10)
    assert abs(other - expected).max() > 1e-3


def test_ddim_of_any_eta_step_by_step() -> None:
    scheduler = diffusers.DDIMScheduler(**LINEAR, clip_sample=False)
    scheduler.set_timesteps(10)
    chain = respace(BETA, leading(T, 10))
    process = Process(chain, PARAMETERIZATIONS["eps"], VARIANCES["fixed_small"])
    eps = network(np, X_T, 0.0)
    denoise = make_denoise(lambda p, x, t: jnp.asarray(eps), process, threshold=thresholds.none)
    z = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    for eta in (0.3, 1.0):
        step = SAMPLERS["ddim"](levels_of(chain), eta=eta).step
        for t in (1, 5, 9):
            expected = scheduler.step(
                torch.from_numpy(eps).double(),
                int(chain.told[t]),
                torch.from_numpy(X_T).double(),
                eta=eta,
                variance_noise=torch.from_numpy(z).double(),
            ).prev_sample
            noise = jnp.asarray(z)
            found = step(
                functools.partial(denoise, None),
                jnp.asarray(X_T),
                jnp.asarray(t),
                lambda _, noise=noise: noise,
                (),
            )
            close(np.asarray(found.x), expected.numpy())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("num_steps", [5, 10, 14, 15, 20, 50])
def test_dpm_solver_pp(order: int, num_steps: int) -> None:
    """On both sides of 15 steps, from which on the last but one has the full order."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **LINEAR,
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    expected, visited = theirs(scheduler, num_steps)
    close(ours("dpm_solver_pp", visited[::-1].copy(), order=order), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [5, 10, 30, 50])
def test_unipc(order: int, num_steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        **LINEAR, solver_order=order, solver_type="bh2", predict_x0=True, final_sigmas_type="zero"
    )
    expected, visited = theirs(scheduler, num_steps)
    close(ours("unipc", visited[::-1].copy(), order=order), expected)


@pytest.mark.parametrize("num_steps", [10, 28])  # whose timesteps are whole numbers
def test_heun(num_steps: int) -> None:
    """Theirs walks x / alpha and visits each timestep but the first twice."""
    scheduler = diffusers.HeunDiscreteScheduler(**LINEAR, timestep_spacing="linspace")
    expected, visited = theirs(scheduler, num_steps)
    assert len(visited) == 2 * num_steps - 1
    keep = np.unique(visited.astype(int))
    np.testing.assert_array_equal(keep, np.unique(visited))
    close(ours("heun", keep), expected)
