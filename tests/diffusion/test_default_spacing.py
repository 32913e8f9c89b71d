"""Samplers in few steps on their own timesteps, of a mixture whose best denoiser is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from diffusion import thresholds
from diffusion.forward import at
from diffusion.multistep import FEW, dpm_weights
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import grid, levels_of, through
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import SPACINGS, trailing
from diffusion.structs import Process
from diffusion.variances import VARIANCES
from diffusion.walk import Samples, end, start, walk
from tests.diffusion import mixture

T, COUNT = 1000, 1000
X_T = ndtri((np.arange(COUNT) + 0.5) / COUNT)[:, None].astype(np.float32)  # N(0, 1), evenly
CHAINS = ("linear", "cosine")
PATH = through(from_betas(BETAS["linear"](T)))
FLAGS = {name: make(grid(PATH, np.arange(T, dtype=float))) for name, make in SAMPLERS.items()}


@functools.cache
def drawn(name: str, chain_name: str, steps: int, **options: Any) -> Samples:
    """From X_T on the sampler's own timesteps, with all estimates of x_0."""
    betas = BETAS[chain_name](T)
    whole = from_betas(betas)
    chain = respace(betas, SAMPLERS[name](levels_of(whole), **options).spacing(T, steps))
    sampler = SAMPLERS[name](levels_of(chain), **options)

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return mixture.x_0_given_x_t(at(whole, t, x_t), x_t)

    process = Process(chain, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"])
    model = functools.partial(make_denoise(apply, process, threshold=thresholds.none), None)
    keys, record = jax.random.split(jax.random.key(0), COUNT), tuple(range(steps))

    @jax.jit
    def run(x_T: jax.Array) -> Samples:
        state = start(sampler, x_T, steps)
        return end(walk(sampler, model, keys, state, record=record))

    return run(jnp.asarray(X_T))


def distance(name: str, chain_name: str, steps: int, **options: Any) -> float:
    """The largest difference to the distribution function of the data."""
    x = np.sort(np.asarray(drawn(name, chain_name, steps, **options).x_0, np.float64)[:, 0])
    return float(abs(mixture.cumulative(x) - (np.arange(COUNT) + 0.5) / COUNT).max())


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("chain_name", CHAINS)
def test_no_solver_of_the_flow_is_farther_from_the_truth_than_ddim(
    chain_name: str, steps: int
) -> None:
    """By more than 4,000 draws tell: 1.63 / sqrt(n) is exceeded once in 100."""
    ddim = distance("ddim", chain_name, steps)
    others = {
        "heun": distance("heun", chain_name, steps),
        "unipc": distance("unipc", chain_name, steps),
        "2M": distance("dpm_solver_pp", chain_name, steps),
        "3M": distance("dpm_solver_pp", chain_name, steps, order=3),
    }
    assert max(others.values()) < ddim + 1.63 / np.sqrt(4000), (ddim, others)
    assert others["heun"] < 0.6 * ddim


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize(
    "name", [name for name, flags in FLAGS.items() if not (flags.needs_path or flags.adaptive)]
)
def test_few_steps_from_almost_pure_noise_stay_where_data_are(name: str, steps: int) -> None:
    """sigma / alpha of the cosine chain falls from 20,000 to 2 in the first of these steps."""
    found = drawn(name, "cosine", steps)
    assert abs(found.progress).max() < 5 and abs(found.x_0).max() < 5


def test_every_own_spacing_is_one_that_a_config_can_name() -> None:
    own = {name: flags.spacing for name, flags in FLAGS.items()}
    assert all(SPACINGS[spacing.__name__] is spacing for spacing in own.values())
    multistep = {name for name, spacing in own.items() if spacing is trailing}
    assert multistep == {"dpm_solver_pp", "unipc"}


def test_heun_leaves_steps_alone_that_would_multiply_differences() -> None:
    """Of 5 on the cosine chain the first, beside the last, which has nothing to correct."""
    assert drawn("heun", "cosine", 5).evaluations[0] == 8
    assert drawn("heun", "linear", 10).evaluations[0] == 19


@pytest.mark.parametrize("num_steps", [FEW - 1, FEW])
def test_the_last_step_but_one_of_3m_has_the_order_of_its_authors(num_steps: int) -> None:
    """Which is 2, without the third estimate, only where steps are few."""
    betas = BETAS["linear"](T)
    weights = dpm_weights(levels_of(respace(betas, trailing(T, num_steps))), 3)
    assert (weights[1, 3] == 0) == (num_steps < FEW)
    assert (weights[0, 2:] == 0).all() and weights[0, 1] == 1 and weights[2, 3] != 0
