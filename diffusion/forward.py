"""The forward process q, which adds noise and has nothing to learn."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.structs import Gaussian, Point, Schedule

Time = Int[Array, ""] | Int[Array, " b"]
N = TypeVar("N", bound=Schedule | Point)


def fit(now: N, like: jax.Array) -> N:
    """The values of a point [] or [B], with axes of length 1 that fit them to `like` [B, ...]."""
    return jax.tree.map(
        lambda value: value.reshape(value.shape + (1,) * (like.ndim - value.ndim)), now
    )


def at(schedule: Schedule, t: Time, like: jax.Array) -> Schedule:
    """The tables at t, gathered once: of t's shape, with axes of length 1 that fit them to `like`.

    Args:
        t: i32[] or i32[B], in [0, T); `like` then has B as its first axis.
        like: array of any rank, at least 1 where t is [B].
    """
    return fit(jax.tree.map(lambda table: table[t], schedule), like)


def q_marginal(schedule: Schedule, x_0: Float[Array, "*x"], t: Time) -> Gaussian:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (DDPM Eq. 4)."""
    now = at(schedule, t, x_0)
    return Gaussian(now.signal * x_0, jnp.log(now.noise_variance))


def q_sample(
    schedule: Schedule, x_0: Float[Array, "*x"], t: Time, eps: Float[Array, "*x"]
) -> Float[Array, "*x"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM Eq. 4, reparameterised).

    `x_0` is f32[B, ...], images in [-1, 1]; `eps` standard normal; `t` in [0, T).
    """
    now = at(schedule, t, x_0)
    return now.signal * x_0 + now.noise * eps


def q_step(schedule: Schedule, x_prev: Float[Array, "*x"], t: Time) -> Gaussian:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (DDPM Eq. 2)."""
    now = at(schedule, t, x_prev)
    return Gaussian(jnp.sqrt(now.alpha) * x_prev, now.log_beta)


def q_posterior(now: Schedule, x_0: Float[Array, "*x"], x_t: Float[Array, "*x"]) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) = N(mu-tilde_t, beta-tilde_t I) (DDPM Eqs. 6, 7).

    The log-variance at t = 0, where the variance is 0, is the one at t = 1, as in the original.
    `now` holds the tables at t.
    """
    mean = now.posterior_mean_x_0 * x_0 + now.posterior_mean_x_t * x_t
    return Gaussian(mean, now.posterior_log_variance)


def snr(now: Schedule | Point) -> Float[Array, "..."]:
    """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), of the shape of `now` (VDM Eq. 2)."""
    return now.alpha_bar / now.noise_variance
