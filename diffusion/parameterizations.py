"""What the network predicts: each entry is the target and the way back from it to x_0.

Every `target` is a function of (schedule, x_0, eps, x_t, t) and every `decode` one of
(schedule, output, x_t, t); arrays are f32[B, ...] and t is i32[] or i32[B].
"""

from types import MappingProxyType

from jaxtyping import Array, Float

from diffusion.forward import Time, at, q_posterior
from diffusion.structs import Parameterization, Schedule

X = Float[Array, "*x"]


def mu_target(schedule: Schedule, x_0: X, eps: X, x_t: X, t: Time) -> X:
    """mu-tilde_t(x_t, x_0), the mean of the forward posterior (DDPM Eqs. 7, 8)."""
    return q_posterior(schedule, x_0, x_t, t).mean


def mu_decode(schedule: Schedule, output: X, x_t: X, t: Time) -> X:
    """x_0 = (output - c_t x_t) / c_0 where mu-tilde_t = c_0 x_0 + c_t x_t (DDPM Eq. 7 solved)."""
    c_t = at(schedule.posterior_mean_x_t, t, x_t)
    return (output - c_t * x_t) / at(schedule.posterior_mean_x_0, t, x_t)


def x_0_target(schedule: Schedule, x_0: X, eps: X, x_t: X, t: Time) -> X:
    """The data itself (DDPM section 3.2, tried and set aside there)."""
    return x_0


def x_0_decode(schedule: Schedule, output: X, x_t: X, t: Time) -> X:
    """x_0 = output."""
    return output


def eps_target(schedule: Schedule, x_0: X, eps: X, x_t: X, t: Time) -> X:
    """The noise that made x_t (DDPM Eqs. 12, 14)."""
    return eps


def eps_decode(schedule: Schedule, output: X, x_t: X, t: Time) -> X:
    """x_0 = (x_t - sqrt(1 - alpha_bar_t) output) / sqrt(alpha_bar_t) (DDPM Eq. 15)."""
    noise = at(schedule.sqrt_one_minus_alpha_bar, t, x_t) * output
    return (x_t - noise) / at(schedule.sqrt_alpha_bar, t, x_t)


def v_target(schedule: Schedule, x_0: X, eps: X, x_t: X, t: Time) -> X:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022, App. D)."""
    return (
        at(schedule.sqrt_alpha_bar, t, x_t) * eps
        - at(schedule.sqrt_one_minus_alpha_bar, t, x_t) * x_0
    )


def v_decode(schedule: Schedule, output: X, x_t: X, t: Time) -> X:
    """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) output (Salimans and Ho 2022, App. D)."""
    return (
        at(schedule.sqrt_alpha_bar, t, x_t) * x_t
        - at(schedule.sqrt_one_minus_alpha_bar, t, x_t) * output
    )


PARAMETERIZATIONS = MappingProxyType(
    {
        "mu": Parameterization(mu_target, mu_decode, predicts_mean=True, needs_signal=False),
        "x_0": Parameterization(x_0_target, x_0_decode, predicts_mean=False, needs_signal=False),
        "eps": Parameterization(eps_target, eps_decode, predicts_mean=False, needs_signal=True),
        "v": Parameterization(v_target, v_decode, predicts_mean=False, needs_signal=False),
    }
)
