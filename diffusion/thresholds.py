"""What is done to an estimate of x_0 that lies outside [-1, 1], before anything is made of it."""

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, "b *x"]


def none(x_0: X, /) -> X:
    """The estimate as it is."""
    return x_0


def clip(x_0: X, /) -> X:
    """Each value clipped to [-1, 1] (the original's code)."""
    return jnp.clip(x_0, -1.0, 1.0)


def percentile(x_0: X, /, quantile: float = 0.995, most: float | int = float("inf")) -> X:
    """Clipped to [-s, s] and divided by s, dynamic thresholding (Imagen, section 2.3).

    s is the quantile of |x_0| of the example, at least 1 and at most `most`: with most = 1 this is
    `clip`.
    """
    axes = tuple(range(1, x_0.ndim))
    s = jnp.quantile(jnp.abs(x_0), quantile, axis=axes, keepdims=True)
    s = jnp.clip(s, 1.0, most)
    return jnp.clip(x_0, -s, s) / s


THRESHOLDS = MappingProxyType({"none": none, "clip": clip, "percentile": percentile})
