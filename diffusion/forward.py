"""The forward process q, which adds noise and has nothing to learn."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.structs import Gaussian, Schedule

Time = Int[Array, ""] | Int[Array, " b"]


def at(table: Float[Array, " T"], t: Time, like: jax.Array) -> Float[Array, "..."]:
    """table[t], with axes of length 1 appended so that it broadcasts against `like`.

    Args:
        table: f32[T].
        t: i32[] or i32[B], in [0, T); `like` then has B as its first axis.
        like: array of any rank, at least 1 where t is [B].
    """
    return table[t].reshape(t.shape + (1,) * (like.ndim - t.ndim))


def q_marginal(schedule: Schedule, x_0: Float[Array, "*x"], t: Time) -> Gaussian:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (DDPM Eq. 4)."""
    return Gaussian(
        mean=at(schedule.sqrt_alpha_bar, t, x_0) * x_0,
        log_variance=jnp.log(at(schedule.one_minus_alpha_bar, t, x_0)),
    )


def q_sample(
    schedule: Schedule, x_0: Float[Array, "*x"], t: Time, eps: Float[Array, "*x"]
) -> Float[Array, "*x"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM Eq. 4, reparameterised).

    Args:
        schedule: the chain.
        x_0: f32[B, ...] data, images in [-1, 1].
        t: i32[] or i32[B], in [0, T).
        eps: f32[B, ...] standard normal noise.
    """
    return (
        at(schedule.sqrt_alpha_bar, t, x_0) * x_0
        + at(schedule.sqrt_one_minus_alpha_bar, t, x_0) * eps
    )


def q_step(schedule: Schedule, x_prev: Float[Array, "*x"], t: Time) -> Gaussian:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (DDPM Eq. 2)."""
    return Gaussian(
        mean=jnp.sqrt(at(schedule.alpha, t, x_prev)) * x_prev,
        log_variance=at(schedule.log_beta, t, x_prev),
    )


def q_posterior(
    schedule: Schedule, x_0: Float[Array, "*x"], x_t: Float[Array, "*x"], t: Time
) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) = N(mu-tilde_t, beta-tilde_t I) (DDPM Eqs. 6, 7).

    The log-variance at t = 0, where the variance is 0, is the one at t = 1, as in the original.
    """
    return Gaussian(
        mean=at(schedule.posterior_mean_x_0, t, x_0) * x_0
        + at(schedule.posterior_mean_x_t, t, x_t) * x_t,
        log_variance=at(schedule.posterior_log_variance, t, x_t),
    )


def snr(schedule: Schedule, t: Time) -> Float[Array, "..."]:
    """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), f32 of t's shape (VDM Eq. 2)."""
    return schedule.alpha_bar[t] / schedule.one_minus_alpha_bar[t]
