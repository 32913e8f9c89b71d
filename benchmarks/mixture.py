"""Data that is a mixture of two Gaussians a value, whose best denoiser is known in closed form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr


class Mixture(NamedTuple):
    """w_0 N(m_0, s^2) + w_1 N(m_1, s^2) of each value; of one place where the means are equal."""

    means: Any  # [..., 2]; the first axes those of the values
    weights: Any = (0.3, 0.7)
    deviation: Any = 0.15


DATA = Mixture((-0.6, 0.5))


def _parts(now: Any, x_t: jax.Array, data: Mixture) -> tuple[jax.Array, jax.Array]:
    """log of weight times density [..., 2], and the mean of x_0 of each part [..., 2]."""
    root, noise = now.signal[..., None], now.noise[..., None] ** 2
    means, weights = (jnp.asarray(values, x_t.dtype) for values in (data.means, data.weights))
    spread = root**2 * data.deviation**2 + noise
    off = x_t[..., None] - root * means
    log_part = jnp.log(weights) - 0.5 * (off**2 / spread + jnp.log(2 * jnp.pi * spread))
    return log_part, means + data.deviation**2 * root / spread * off


def log_density(now: Any, x_t: jax.Array, data: Mixture = DATA) -> jax.Array:
    """log q(x_t) of each value; `now` holds the coefficients."""
    return jax.nn.logsumexp(_parts(now, x_t, data)[0], axis=-1)


def x_0_given_x_t(now: Any, x_t: jax.Array, data: Mixture = DATA) -> jax.Array:
    """E[x_0 | x_t] of each value."""
    log_part, means = _parts(now, x_t, data)
    return jnp.sum(jax.nn.softmax(log_part, axis=-1) * means, axis=-1)


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0."""
    which, noise = jax.random.split(key)
    upper = jax.random.bernoulli(which, DATA.weights[1], shape).astype(int)
    return jnp.asarray(DATA.means)[upper] + DATA.deviation * jax.random.normal(noise, shape)


def _log_share(sign: float, x: np.ndarray) -> np.ndarray:
    parts = zip(DATA.weights, DATA.means, strict=True)
    logs = [np.log(w) + log_ndtr(sign * (x - mean) / DATA.deviation) for w, mean in parts]
    return np.logaddexp(*logs)


def log_cumulative(x: np.ndarray) -> np.ndarray:
    """log P(x_0 <= x)."""
    return _log_share(1.0, x)


def log_exceeding(x: np.ndarray) -> np.ndarray:
    """log P(x_0 > x)."""
    return _log_share(-1.0, x)


def cumulative(x: np.ndarray) -> np.ndarray:
    """P(x_0 <= x)."""
    return np.exp(log_cumulative(x))
