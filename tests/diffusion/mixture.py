"""Data that is a mixture of two Gaussians a value, whose best denoiser is known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.noise_curve import noise_curve, noise_level
from diffusion.structs import NoiseLevel, Schedule

MEANS, WEIGHTS, DEVIATION = np.array([-0.6, 0.5]), np.array([0.3, 0.7]), 0.15
MEAN = float(WEIGHTS @ MEANS)
VARIANCE = float(WEIGHTS @ (MEANS - MEAN) ** 2 + DEVIATION**2)


def _parts(now: Any, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log of weight times density [..., 2], and the mean of x_0 of each part [..., 2]."""
    root, noise = now.sqrt_alpha_bar[..., None], now.sqrt_one_minus_alpha_bar[..., None] ** 2
    spread = root**2 * DEVIATION**2 + noise
    means, weights = (jnp.asarray(values, x_t.dtype) for values in (MEANS, WEIGHTS))
    off = x_t[..., None] - root * means
    log_part = jnp.log(weights) - 0.5 * (off**2 / spread + jnp.log(2 * jnp.pi * spread))
    return log_part, means + DEVIATION**2 * root / spread * off


def log_density(now: Any, x_t: jax.Array) -> jax.Array:
    """log q(x_t) of each value; `now` holds the coefficients."""
    return jax.nn.logsumexp(_parts(now, x_t)[0], axis=-1)


def x_0_given_x_t(now: Any, x_t: jax.Array) -> jax.Array:
    """E[x_0 | x_t] of each value."""
    log_part, means = _parts(now, x_t)
    return jnp.sum(jax.nn.softmax(log_part, axis=-1) * means, axis=-1)


def between(schedule: Schedule, t: jax.Array, like: jax.Array) -> NoiseLevel:
    """The chain's noise levels at t [B], whole or not, to go with `like`."""
    curve = noise_curve(schedule)
    now = jax.vmap(lambda u: noise_level(curve, u))(t.astype(jnp.float32))
    return jax.tree.map(lambda value: value.reshape(-1, *[1] * (like.ndim - 1)), now)


def best_network(schedule: Schedule) -> Any:
    """(params, x_t, t [B]) -> E[x_0 | x_t], to be read as x_0, on a chain of its own times."""

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return x_0_given_x_t(between(schedule, t, x_t), x_t)

    return apply


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0."""
    which, noise = jax.random.split(key)
    upper = jax.random.bernoulli(which, WEIGHTS[1], shape).astype(int)
    return jnp.asarray(MEANS)[upper] + DEVIATION * jax.random.normal(noise, shape)


def cumulative(x: np.ndarray) -> np.ndarray:
    """P(x_0 <= x)."""
    from scipy.stats import norm

    return sum(w * norm.cdf(x, m, DEVIATION) for w, m in zip(WEIGHTS, MEANS, strict=True))
