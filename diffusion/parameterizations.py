"""What the network predicts: each entry is the target and the way back from it to x_0.

Every `target` is a function of (now, x_0, eps, x_t) and every `decode` one of (now, output, x_t).
All but mu's read `now.signal` and `now.noise` only, of x_t = signal x_0 + noise eps, so that `now`
is a chain's row at t (`forward.at`) or any point of a path (`paths.at`). Arrays are f32[B, ...].
"""

from types import MappingProxyType

from jaxtyping import Array, Float

from diffusion.forward import q_posterior
from diffusion.structs import Parameterization, Point, Schedule

X = Float[Array, "*x"]
Now = Schedule | Point


def mu_target(now: Schedule, x_0: X, eps: X, x_t: X) -> X:
    """mu-tilde_t(x_t, x_0), the mean of the forward posterior (DDPM Eqs. 7, 8)."""
    return q_posterior(now, x_0, x_t).mean


def mu_decode(now: Schedule, output: X, x_t: X) -> X:
    """x_0 = (output - c_t x_t) / c_0 where mu-tilde_t = c_0 x_0 + c_t x_t (DDPM Eq. 7 solved)."""
    return (output - now.posterior_mean_x_t * x_t) / now.posterior_mean_x_0


def x_0_target(now: Now, x_0: X, eps: X, x_t: X) -> X:
    """The data itself (DDPM section 3.2, tried and set aside there)."""
    return x_0


def x_0_decode(now: Now, output: X, x_t: X) -> X:
    """x_0 = output."""
    return output


def eps_target(now: Now, x_0: X, eps: X, x_t: X) -> X:
    """The noise that made x_t (DDPM Eqs. 12, 14)."""
    return eps


def eps_decode(now: Now, output: X, x_t: X) -> X:
    """x_0 = (x_t - sqrt(1 - alpha_bar_t) output) / sqrt(alpha_bar_t) (DDPM Eq. 15)."""
    return (x_t - now.noise * output) / now.signal


def v_target(now: Now, x_0: X, eps: X, x_t: X) -> X:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022, App. D)."""
    return now.signal * eps - now.noise * x_0


def v_decode(now: Now, output: X, x_t: X) -> X:
    """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) output (Salimans and Ho 2022, App. D)."""
    return now.signal * x_t - now.noise * output


def score_target(now: Now, x_0: X, eps: X, x_t: X) -> X:
    """grad log q(x_t | x_0) = -eps / sqrt(1 - alpha_bar_t) (Song Eq. 7 for DDPM Eq. 4)."""
    return -eps / now.noise


def score_decode(now: Now, output: X, x_t: X) -> X:
    """x_0 = (x_t + (1 - alpha_bar_t) score) / sqrt(alpha_bar_t) (Tweedie's formula)."""
    return (x_t + now.noise**2 * output) / now.signal


def convert(now: Now, value: X, x_t: X, given: Parameterization, wanted: Parameterization) -> X:
    """What `wanted` stands for of the same model: from and to x_0, eps, v, mu or the score.

    Args:
        now: the row of a chain at t, or a point of a path.
        value: f32[B, ...], what `given` stands for, at x_t.
    """
    x_0 = given.decode(now, value, x_t)
    eps = (x_t - now.signal * x_0) / now.noise
    return wanted.target(now, x_0, eps, x_t)


# No network is asked for the score itself, whose scale changes a hundredfold over a chain.
SCORE = Parameterization(score_target, score_decode, predicts_mean=False, needs_signal=True)
PARAMETERIZATIONS = MappingProxyType(
    {
        "mu": Parameterization(mu_target, mu_decode, predicts_mean=True, needs_signal=False),
        "x_0": Parameterization(x_0_target, x_0_decode, predicts_mean=False, needs_signal=False),
        "eps": Parameterization(eps_target, eps_decode, predicts_mean=False, needs_signal=True),
        "v": Parameterization(v_target, v_decode, predicts_mean=False, needs_signal=False),
    }
)
