"""The variance of p(x_{t-1} | x_t), always returned as a logarithm.

Every function takes (now, extra, x_t), where `now` holds the chain's tables at t (`forward.at`) and
`extra` is the second half of the network's output (f32 of x_t's shape) or None, and returns f32
broadcastable to x_t.
"""

from types import MappingProxyType

from jaxtyping import Array, Float

from diffusion.structs import Schedule, Variance

X = Float[Array, "*x"]
LogVariance = Float[Array, "..."]


def fixed_large(now: Schedule, extra: None, x_t: X) -> LogVariance:
    """log beta_t, except that t = 0 uses log beta-tilde_1 (DDPM section 3.2; the original's code).

    The first entry is what scales the decoder of x_0; the larger log beta_0 would cost bits.
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


VARIANCES = MappingProxyType(
    {
        "fixed_small": Variance(0, fixed_small),
        "fixed_large": Variance(0, fixed_large),
        "learned": Variance(1, learned, one_step=True),
        "learned_range": Variance(1, learned_range),
    }
)
