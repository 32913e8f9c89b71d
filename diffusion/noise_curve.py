"""Between the timesteps of a chain: log alpha_bar as a smooth function of a continuous u.

The chain's own noise levels are met at the integers, u = t.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from diffusion.structs import NoiseLevel, Schedule

Scalar = Float[Array, ""]


class NoiseCurve(NamedTuple):
    """log alpha_bar(u) and the network's t, between the timesteps of a chain of length T."""

    cubic: Float[Array, "n 4"]  # row k: log alpha_bar on [k, k + 1] in powers of u - k; n = T - 1
    model_t: Float[Array, " T"]  # what the network is told at the integers


def _slopes(rises: np.ndarray) -> np.ndarray:
    """f64[n + 1] derivatives at the knots from the n negative rises between them, at unit spacing.

    Those of the cubic spline that starts and ends with the slopes of the parabolas through three
    knots: its second derivative is continuous, and each jump of it would cost an adaptive solver
    steps. Where the spline might turn, its slope is brought to between 0 and three times
    either neighbouring rise, which suffices for monotone cubics (Fritsch and Carlson 1980).
    """
    if rises.size == 1:
        return np.repeat(rises, 2)
    first, last = 1.5 * rises[0] - 0.5 * rises[1], 1.5 * rises[-1] - 0.5 * rises[-2]
    right = 3.0 * (rises[:-1] + rises[1:])
    right[0] -= first
    right[-1] -= last
    bands = np.array([[1.0], [4.0], [1.0]]).repeat(right.size, axis=1)  # s[k-1] + 4 s[k] + s[k+1]
    slopes = np.concatenate([[first], scipy.linalg.solve_banded((1, 1), bands, right), [last]])
    nearest = np.maximum(np.append(rises, rises[-1]), np.append(rises[0], rises))
    return np.clip(slopes, 3.0 * nearest, 0.0)


def log_alphas(schedule: Schedule) -> np.ndarray:
    """log alpha_t, f64[T], from concrete tables; -inf where beta_t = 1.

    Each float32 table where it has digits: alpha near 1 and beta near 1 have lost theirs.
    """
    beta, alpha = (np.asarray(table, np.float64) for table in (schedule.beta, schedule.alpha))
    with np.errstate(divide="ignore"):
        return np.where(beta < 0.5, np.log1p(-np.minimum(beta, 0.5)), np.log(alpha))


def noise_curve(schedule: Schedule) -> NoiseCurve:
    """A monotone cubic spline of log alpha_bar(u) through the chain's values.

    It is continuously differentiable, and twice so wherever the chain is smooth. The coefficients
    are derived in float64 from beta_t; `model_t` is interpolated linearly.

    Raises:
        ValueError: for a chain of one step, or one that ends in pure noise, which no finite flow
            reaches.
    """
    beta = np.asarray(schedule.beta)
    if beta.size < 2:
        raise ValueError("a probability flow needs a chain of at least 2 timesteps, got 1.")
    if beta[-1] >= 1.0:
        raise ValueError(
            f"beta[{beta.size - 1}] is 1: this chain ends in pure noise (log alpha_bar = -inf), "
            "which its probability flow reaches in no finite time. Choose a schedule whose last "
            "beta is below 1."
        )
    steps = log_alphas(schedule)
    values, rises = np.cumsum(steps), steps[1:]
    slopes = _slopes(rises)
    left, right = slopes[:-1], slopes[1:]
    cubic = [values[:-1], left, 3.0 * rises - 2.0 * left - right, left + right - 2.0 * rises]
    return NoiseCurve(
        cubic=jnp.asarray(np.stack(cubic, axis=1), jnp.float32),
        model_t=jnp.asarray(schedule.model_t, jnp.float32),
    )


def noise_level(curve: NoiseCurve, u: Scalar) -> NoiseLevel:
    """The curve at u, f32[] in [0, T - 1]."""
    k = jnp.clip(jnp.floor(u).astype(jnp.int32), 0, curve.cubic.shape[0] - 1)
    s = u - k
    a, b, c, d = curve.cubic[k]
    t = curve.model_t
    return NoiseLevel(
        log_alpha_bar=a + s * (b + s * (c + s * d)),
        rate=b + s * (2.0 * c + s * 3.0 * d),
        model_t=t[k] + s * (t[k + 1] - t[k]),
    )
