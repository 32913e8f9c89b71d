"""Data that is Gaussian, for which the best reverse process is known in closed form.

Where x_0 ~ N(m, s^2), x_0 given x_t is Gaussian with the mean and variance below, and the true
p(x_{t-1} | x_t) is Gaussian too: a chain with this mean and variance models the data exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.forward import at
from diffusion.likelihood import bound_terms, prior_term
from diffusion.structs import Gaussian, Parameterization, Schedule, Variance

MEAN, DEVIATION = 0.3, 0.5


class Bound(NamedTuple):
    """The variational bound of each example, in nats per dimension, and what it is made of."""

    prior: jax.Array  # L_T, f32[B]
    terms: jax.Array  # f32[T, B]; row 0 is L_0
    x_0_mse: jax.Array  # f32[T, B]

    @property
    def total(self) -> jax.Array:
        return self.prior + jnp.sum(self.terms, axis=0)


def variational_bound(
    schedule: Schedule, denoise: Any, x_0: jax.Array, keys: jax.Array, **options: Any
) -> Bound:
    """All T terms (DDPM Eq. 5)."""
    timesteps = jnp.arange(schedule.num_timesteps)[:, None].repeat(x_0.shape[0], axis=1)
    terms = bound_terms(schedule, denoise, x_0, keys, timesteps, **options)
    return Bound(prior_term(schedule, x_0), *terms)


def x_0_given_x_t(
    now: Schedule, x_t: jax.Array, mean: float = MEAN, std: float = DEVIATION
) -> tuple[jax.Array, jax.Array]:
    root, noise = now.signal, now.noise_variance
    total = root**2 * std**2 + noise
    return mean + std**2 * root / total * (x_t - root * mean), std**2 * noise / total


def best_network(
    schedule: Schedule,
    parameterization: Parameterization,
    mean: float = MEAN,
    std: float = DEVIATION,
) -> Callable[..., jax.Array]:
    """The network output whose decoded x_0 is the conditional mean, on a chain of its own times."""

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        now = at(schedule, t, x_t)
        if parameterization.scale_in is not None:
            x_t = x_t / parameterization.scale_in(now)
        x_0, _ = x_0_given_x_t(now, x_t, mean, std)
        eps = (x_t - now.signal * x_0) / now.noise
        return parameterization.target(now, x_0, eps, x_t)

    return apply


def exact_variance(std: float = DEVIATION) -> Variance:
    """The log-variance of the true p(x_{t-1} | x_t)."""

    def log_variance(now: Schedule, extra: None, x_t: jax.Array) -> jax.Array:
        _, spread = x_0_given_x_t(now, x_t, std=std)
        return jnp.log(now.posterior_variance + now.posterior_mean_x_0**2 * spread)

    return Variance(0, log_variance)


def log_density(x: jax.Array, p: Gaussian) -> jax.Array:
    """log N(x; p), a decoder for data that is not discrete."""
    square = jnp.square(x - p.mean) * jnp.exp(-p.log_variance)
    return -0.5 * (jnp.log(2 * jnp.pi) + p.log_variance + square)
