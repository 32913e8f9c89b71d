"""The bound where L_0 is a density: of data N(0, 1), whose reverse process is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import at
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.reverse import make_denoise
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Process, Schedule
from diffusion.vae import normal_log_density
from diffusion.variances import VARIANCES, of_density
from tests.diffusion.gaussian import variational_bound

T, DRAWS = 100, 4096
SCHEDULES = {"linear": BETAS["linear"](T, 1e-3, 0.2), "cosine": BETAS["cosine"](T)}


def gap(name: str, schedule: Schedule) -> float:
    """-log p(x_0) - the bound, in nats: only beta-tilde is not the true variance, beta_t.

    For t > 0 the divergence is (r - log(1 + r)) / 2 too large, r = (1 - alpha_bar_t) / (1 -
    alpha_bar_{t-1}) - 1.
    """
    if name != "fixed_small":
        return 0.0
    noise = np.asarray(schedule.noise_variance, np.float64)
    r = noise[1:] / noise[:-1] - 1
    return float((r - np.log1p(r)).sum() / 2)


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("chain", SCHEDULES)
def test_the_best_denoisers_bound_is_the_likelihood(chain: str, name: str, key: jax.Array) -> None:
    """For every x_0, whatever the variance; a learned one is told the true variance, beta_t."""
    schedule, variance = from_betas(SCHEDULES[chain]), of_density(VARIANCES[name])

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        now = at(schedule, t, x_t)
        extra = {"learned": now.log_beta, "learned_range": 1.0}.get(name)
        parts = [now.noise * x_t]  # eps
        if extra is not None:
            parts.append(jnp.broadcast_to(extra, x_t.shape))
        return jnp.concatenate(parts, axis=-1)

    process = Process(schedule, PARAMETERIZATIONS["eps"], variance)
    denoise = make_denoise(apply, process, threshold=thresholds.none)
    values = np.array([-1.5, 0.0, 0.7])
    x_0 = jnp.repeat(jnp.asarray(values, jnp.float32), DRAWS)[:, None]
    keys = jax.random.split(key, len(x_0))

    @jax.jit
    def bound(x_0: jax.Array) -> jax.Array:
        def known(x_t: jax.Array, t: jax.Array) -> object:
            return denoise(None, x_t, t)

        return variational_bound(schedule, known, x_0, keys, decoder=normal_log_density).total

    total = np.asarray(bound(x_0), np.float64).reshape(len(values), DRAWS)
    error = total.std(axis=1) / np.sqrt(DRAWS)
    truth = 0.5 * (np.log(2 * np.pi) + values**2)
    if name == "fixed_small":  # each x_0 has a gap of its own, and their mean is known
        x_0 = jax.random.normal(jax.random.fold_in(key, 1), x_0.shape)
        total = np.asarray(bound(x_0), np.float64)[None]
        error = total.std(axis=1) / np.sqrt(total.size)
        truth = np.array([0.5 * np.log(2 * np.pi * np.e) + gap(name, schedule)])
    assert (error < 0.03).all()
    assert (abs(total.mean(axis=1) - truth) < 4 * error).all(), (total.mean(axis=1), truth, error)
