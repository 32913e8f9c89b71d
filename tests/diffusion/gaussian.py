"""Data that is Gaussian, for which the best reverse process is known in closed form.

Where x_0 ~ N(m, s^2), x_0 given x_t is Gaussian with the mean and variance below, and the true
p(x_{t-1} | x_t) is Gaussian too: a chain with this mean and variance models the data exactly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.forward import at
from diffusion.structs import Gaussian, Parameterization, Schedule, Variance

MEAN, DEVIATION = 0.3, 0.5


def x_0_given_x_t(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, mean: float = MEAN, std: float = DEVIATION
) -> tuple[jax.Array, jax.Array]:
    root, noise = at(schedule.sqrt_alpha_bar, t, x_t), at(schedule.one_minus_alpha_bar, t, x_t)
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
        x_0, _ = x_0_given_x_t(schedule, x_t, t, mean, std)
        root, noise = (
            at(schedule.sqrt_alpha_bar, t, x_t),
            at(schedule.sqrt_one_minus_alpha_bar, t, x_t),
        )
        return parameterization.target(schedule, x_0, (x_t - root * x_0) / noise, x_t, t)

    return apply


def exact_variance(std: float = DEVIATION) -> Variance:
    """The log-variance of the true p(x_{t-1} | x_t)."""

    def log_variance(schedule: Schedule, extra: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        _, spread = x_0_given_x_t(schedule, x_t, t, std=std)
        slope = at(schedule.posterior_mean_x_0, t, x_t)
        return jnp.log(at(schedule.posterior_variance, t, x_t) + slope**2 * spread)

    return Variance(0, log_variance)


def log_density(x: jax.Array, p: Gaussian) -> jax.Array:
    """log N(x; p), a decoder for data that is not discrete."""
    square = jnp.square(x - p.mean) * jnp.exp(-p.log_variance)
    return -0.5 * (jnp.log(2 * jnp.pi) + p.log_variance + square)
