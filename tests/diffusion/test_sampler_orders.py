"""Published orders of the samplers' errors, and the weights behind those of multistep methods."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.multistep import dpm_weights, unipc_weights
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import levels_of
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, respace
from diffusion.structs import Levels, Process, Schedule
from diffusion.variances import VARIANCES
from diffusion.walk import start, walk
from tests.diffusion import mixture

FINE = 32_768  # timesteps of a chain on which steps of any length are to be had
# name, options, order of the error in the number of steps. UniPC's corrector adds one; 3M as it is
# run everywhere has the second order.
ORDERS = [
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("dpm_solver_pp", {"order": 2}, 2),
    ("dpm_solver_pp", {"order": 3}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 3}, 4),
]


@pytest.fixture(scope="module")
def error_of() -> Callable[..., float]:
    """(name, number of steps, **options) -> mean error, in float64 on a mixture."""
    betas = BETAS["linear"](FINE, beta_start=0.1 / FINE, beta_end=20 / FINE)
    alpha_bar = np.cumprod(1.0 - betas)
    lam = 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))
    with jax.enable_x64(True):
        tables = Schedule(*[None] * len(Schedule._fields))._replace(
            signal=jnp.sqrt(alpha_bar), noise=jnp.sqrt(1 - alpha_bar)
        )
        x_T = jnp.linspace(-2.0, 2.0, 9)[:, None]

    def apply(params, x_t, t):
        now = jax.tree.map(lambda table: table[t][:, None], tables)
        return mixture.x_0_given_x_t(now, x_t)

    def drawn(name: str, steps: int, **options: Any) -> np.ndarray:
        targets = np.linspace(lam[0], lam[-1], steps)  # where these methods are of their orders
        keep = np.unique([np.argmin(abs(lam - x)) for x in targets])
        with jax.enable_x64(True):
            chain = respace(betas, keep)
            process = Process(chain, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"])
            denoise = make_denoise(apply, process, threshold=thresholds.none)
            sampler = SAMPLERS[name](levels_of(chain), **options)
            keys = jax.random.split(jax.random.key(0), len(x_T))
            run = jax.jit(lambda s: walk(sampler, functools.partial(denoise, None), keys, s).x_t)
            found = np.asarray(run(start(sampler, x_T, 0)))
            assert found.dtype == np.float64
            return found

    truth = drawn("unipc", 1000)
    return functools.cache(
        lambda name, steps, **options: float(abs(drawn(name, steps, **options) - truth).mean())
    )


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_its_error_falls_at_its_order(name: str, options: dict, order: int, error_of) -> None:
    numbers = [32, 56, 96]
    errors = [error_of(name, steps, **options) for steps in numbers]
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert order - 0.5 < slope < order + 0.7, (slope, errors)


def test_more_memory_is_worth_it(error_of) -> None:
    second, third, unipc = (
        error_of(name, 32, order=order)
        for name, order in (("dpm_solver_pp", 2), ("dpm_solver_pp", 3), ("unipc", 3))
    )
    assert unipc < third < 0.6 * second


@pytest.mark.parametrize("lengths", [[1.0], [1.0, 2.0]])
@pytest.mark.parametrize("order", [2, 3])
def test_one_step_of_a_multistep_method_has_its_order(order: int, lengths: list[float]) -> None:
    """From exact estimates of the steps before, the local error is one order smaller."""

    def local_error(steps: int) -> tuple[float, ...]:
        # Steps in lambda from 0 to 1, in turn of these lengths; the middle one is of full order.
        rises = np.cumsum(np.resize(lengths, steps - 1))
        lam = np.concatenate([[np.inf, 1.0], 1.0 - rises / rises[-1]])
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-2 * lam))), np.sqrt(1 / (1 + np.exp(2 * lam)))
        unused = np.zeros(steps)
        levels = Levels(unused, alpha, sigma, lam, unused, unused)
        t = steps // 2
        here, there = t + 1, t

        def integral(x: float) -> float:  # of e^x sin x
            return np.exp(x) * (np.sin(x) - np.cos(x)) / 2

        exact = sigma[there] * (integral(lam[there]) - integral(lam[here]))
        known = np.sin(lam[here : here + 3])
        weights = dpm_weights(levels, order)[t]
        predicted = weights[1:] @ known[:order]
        both = unipc_weights(levels, order)
        step = both.predictor[t][1:] @ known[:order]
        corrected = both.corrector[t - 1][1:] @ np.sin(lam[there : there + order + 1])
        assert weights[0] == pytest.approx(sigma[there] / sigma[here])
        return tuple(abs(exact - found) for found in (predicted, step, corrected))

    errors = np.array([local_error(steps) for steps in (16, 32, 64)])
    slopes = np.log2(errors[:-1] / errors[1:])
    assert (slopes[:, 0] > 2.8).all() and (slopes[:, 1] > order + 0.8).all()
    assert (slopes[:, 2] > order + 1.8).all()
