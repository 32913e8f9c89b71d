"""What the network predicts: each entry is the target and the way back from it to x_0.

Every `target` is a function of (now, x_0, eps, x_t) and every `decode` one of (now, output, x_t).
Most read `now.signal` and `now.noise` only, of x_t = signal x_0 + noise eps, so that `now` is a
chain's row at t (`forward.at`) or any point of a path (`paths.at`); mu is of chains only, and
velocity of paths. Arrays are f32[B, ...].
"""

from types import MappingProxyType

import jax.numpy as jnp
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


def _derivatives(now: Now) -> tuple[X, X]:
    if now.d_signal is None or now.d_noise is None:
        raise ValueError(
            "velocity is dx/du along a path in continuous time, which a chain (config.schedule) "
            "does not have: choose v, or a path."
        )
    return now.d_signal, now.d_noise


def velocity_target(now: Now, x_0: X, eps: X, x_t: X) -> X:
    """dx_u / du = signal'(u) x_0 + noise'(u) eps (Lipman et al. 2023, Eq. 14; straight: eps - x_0).

    Raises:
        ValueError: for a row of a chain.
    """
    d_signal, d_noise = _derivatives(now)
    return d_signal * x_0 + d_noise * eps


def velocity_decode(now: Now, output: X, x_t: X) -> X:
    """x_0 = (noise' x - noise output) / (signal noise' - signal' noise), from the two equations."""
    d_signal, d_noise = _derivatives(now)
    return (d_noise * x_t - now.noise * output) / (now.signal * d_noise - d_signal * now.noise)


def edm(sigma_data: float | int = 0.5) -> Parameterization:
    """Inputs and a target of variance 1 at every level (Karras et al. 2022, Table 1).

    With k = sqrt(noise^2 + signal^2 sigma_data^2), the standard deviation of x, the target is
    F = (noise x_0 / sigma_data - signal sigma_data eps) / k, and the network sees x / k. On the
    path `edm` these are its c_skip, c_out and c_in; with sigma_data = 1 and
    signal^2 + noise^2 = 1, F is -v.

    Args:
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: unless sigma_data > 0.
    """
    if not sigma_data > 0.0:
        raise ValueError(f"sigma_data = {sigma_data} must be above 0.")

    def scale_in(now: Now) -> X:
        return 1.0 / jnp.sqrt(now.noise**2 + (sigma_data * now.signal) ** 2)

    def target(now: Now, x_0: X, eps: X, x_t: X) -> X:
        return scale_in(now) * (now.noise / sigma_data * x_0 - sigma_data * now.signal * eps)

    def decode(now: Now, output: X, x_t: X) -> X:
        c_in = scale_in(now)
        skip = now.signal * sigma_data**2 * c_in**2
        return skip * x_t + now.noise * sigma_data * c_in * output

    return Parameterization(target, decode, False, needs_signal=False, scale_in=scale_in)


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
        "v": Parameterization(
            *(v_target, v_decode), predicts_mean=False, needs_signal=False, keeps_variance=True
        ),
        "velocity": Parameterization(
            *(velocity_target, velocity_decode),
            predicts_mean=False,
            needs_signal=False,
            needs_path=True,
        ),
        "edm": edm(),
    }
)
WITH_OPTIONS = MappingProxyType({"edm": edm})  # makers of those that a config may set options of
