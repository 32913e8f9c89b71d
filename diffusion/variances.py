"""The variance of p(x_{t-1} | x_t), always returned as a logarithm.

Every function takes (now, extra, x_t), where `now` holds the chain's tables at t (`forward.at`) and
`extra` is the second half of the network's output (f32 of x_t's shape) or None, and returns f32
broadcastable to x_t.
"""

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.structs import Schedule, Variance

X = Float[Array, "*x"]
LogVariance = Float[Array, "..."]


def fixed_large(now: Schedule, extra: None, x_t: X) -> LogVariance:
    """log beta_t, except that t = 0 uses log beta-tilde_1 (DDPM section 3.2; the original's code).

    The first entry is what scales the discretised decoder of x_0; the larger log beta_0 would cost
    bits there. See `of_density` for another.
    """
    return now.large_log_variance


def fixed_small(now: Schedule, extra: None, x_t: X) -> LogVariance:
    """log beta-tilde_t, whose entry at t = 0 repeats the one at t = 1 (DDPM section 3.2)."""
    return now.posterior_log_variance


def learned(now: Schedule, extra: X, x_t: X) -> LogVariance:
    """The network's output as it is: a diagonal log-variance (DDPM Table 2, "learned")."""
    return extra


def learned_range(now: Schedule, extra: X, x_t: X) -> LogVariance:
    """v log beta_t + (1 - v) log beta-tilde_t with v = (extra + 1) / 2 (IDDPM Eq. 15)."""
    v = (extra + 1.0) / 2.0
    return v * now.log_beta + (1.0 - v) * now.posterior_log_variance


def of_density(variance: Variance) -> Variance:
    """`variance` for an L_0 that is a density, as of latents: beta_0 at t = 0 where it is fixed.

    The repeat of log beta-tilde_1 there suits a discretised decoder alone, which gains by a
    narrower Gaussian: of data of variance 1 the true p(x_0 | x_1) has beta_0. A learned variance is
    the network's own at t = 0 too.
    """
    if variance.extra_channels:
        return variance

    def log_variance(now: Schedule, extra: None, x_t: X) -> LogVariance:
        fixed = variance.log_variance(now, extra, x_t)
        return jnp.where(now.posterior_variance > 0.0, fixed, now.log_beta)

    return variance._replace(log_variance=log_variance)


VARIANCES = MappingProxyType(
    {
        "fixed_small": Variance(0, fixed_small),
        "fixed_large": Variance(0, fixed_large),
        "learned": Variance(1, learned, one_step=True),
        "learned_range": Variance(1, learned_range),
    }
)
