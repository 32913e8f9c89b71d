"""The variance of p(x_{t-1} | x_t), always returned as a logarithm.

Every function takes (schedule, extra, x_t, t), where `extra` is the second half of the network's
output (f32 of x_t's shape) or None, and returns f32 broadcastable to x_t.
"""

from types import MappingProxyType

from jaxtyping import Array, Float

from diffusion.forward import Time, at
from diffusion.structs import Schedule, Variance

X = Float[Array, "*x"]
LogVariance = Float[Array, "..."]


def fixed_large(schedule: Schedule, extra: None, x_t: X, t: Time) -> LogVariance:
    """log beta_t, except that t = 0 uses log beta-tilde_1 (DDPM section 3.2; the original's code).

    The first entry is what scales the decoder of x_0; the larger log beta_0 would cost bits.
    """
    table = schedule.log_beta.at[0].set(schedule.posterior_log_variance[0])
    return at(table, t, x_t)


def fixed_small(schedule: Schedule, extra: None, x_t: X, t: Time) -> LogVariance:
    """log beta-tilde_t, whose entry at t = 0 repeats the one at t = 1 (DDPM section 3.2)."""
    return at(schedule.posterior_log_variance, t, x_t)


def learned(schedule: Schedule, extra: X, x_t: X, t: Time) -> LogVariance:
    """The network's output as it is: a diagonal log-variance (DDPM Table 2, "learned")."""
    return extra


def learned_range(schedule: Schedule, extra: X, x_t: X, t: Time) -> LogVariance:
    """v log beta_t + (1 - v) log beta-tilde_t with v = (extra + 1) / 2 (IDDPM Eq. 15)."""
    v = (extra + 1.0) / 2.0
    return v * at(schedule.log_beta, t, x_t) + (1.0 - v) * at(
        schedule.posterior_log_variance, t, x_t
    )


VARIANCES = MappingProxyType(
    {
        "fixed_small": Variance(0, fixed_small),
        "fixed_large": Variance(0, fixed_large),
        "learned": Variance(1, learned, one_step=True),
        "learned_range": Variance(1, learned_range),
    }
)
