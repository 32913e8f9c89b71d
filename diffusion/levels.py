"""The noise levels that a walk passes, clean data included, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.noise_curve import log_alphas
from diffusion.structs import Schedule


class Levels(NamedTuple):
    """f64[T + 1] each: entry 0 is clean data, entry t + 1 the chain's t; a step is t + 1 to t."""

    alpha: np.ndarray  # sqrt(alpha_bar), the signal's coefficient
    sigma: np.ndarray  # sqrt(1 - alpha_bar), the noise's
    lam: np.ndarray  # log(alpha / sigma), half the log of the signal-to-noise ratio; inf at 0


def levels_of(chain: Schedule, signal_for: str = "") -> Levels:
    """The levels of a chain of concrete tables.

    Args:
        chain: respaced or not.
        signal_for: name of a sampler that divides by alpha, or "" for one that does not.

    Raises:
        ValueError: if there is such a name and the chain ends in pure noise.
    """
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(log_alphas(chain))])
    if signal_for and not np.isfinite(log_alpha_bar).all():
        raise ValueError(
            f"the sampler {signal_for!r} needs some signal at every timestep, and this chain ends "
            "in pure noise (its last beta is 1). Choose ancestral or ddim, or another schedule."
        )
    variance = -np.expm1(log_alpha_bar)
    with np.errstate(divide="ignore"):
        lam = 0.5 * (log_alpha_bar - np.log(variance))
    return Levels(np.exp(0.5 * log_alpha_bar), np.sqrt(variance), lam)


def taken(table: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
    """Row t of f64[T, n], in the dtype of `like`."""
    return jnp.asarray(table, like.dtype)[t]
