"""The variational bound on the negative log-likelihood, term by term (DDPM Eqs. 5, 13).

Everything is in nats per dimension; `to_bits_per_dim` is the one conversion.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.forward import at, q_marginal, q_posterior, q_sample
from diffusion.random import normal
from diffusion.structs import BoundDenoise, Gaussian, Prediction, Schedule

X = Float[Array, "*x"]
Decoder = Callable[[jax.Array, Gaussian], jax.Array]  # (x_0, p(x_0 | x_1)) -> log-probability

FLOOR_NATS = float(np.log(1e-12))  # the original never lets a pixel's probability fall below 1e-12


def to_bits_per_dim(nats_per_dim: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """nats / ln 2."""
    return nats_per_dim / jnp.log(2.0)


def bin_half_width(num_levels: int) -> float:
    """Half the distance of neighbouring levels, which lie evenly from -1 to 1; 1/255 for 256.

    Raises:
        ValueError: for fewer than two levels.
    """
    if num_levels < 2:
        raise ValueError(f"num_levels = {num_levels} is not possible: data have at least 2 levels.")
    return 1.0 / (num_levels - 1)


def mean_per_example(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """The mean over all axes but the first."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def normal_kl(q: Gaussian, p: Gaussian) -> Float[Array, "..."]:
    """KL(q || p) in nats of every coordinate: f32 of the broadcast shape, >= 0."""
    log_ratio = q.log_variance - p.log_variance
    # expm1 keeps the digits of (ratio - 1 - log ratio) where the two variances are close.
    return 0.5 * (
        jnp.expm1(log_ratio) - log_ratio + jnp.square(q.mean - p.mean) * jnp.exp(-p.log_variance)
    )


def _bin_edges(x_0: X, p: Gaussian, num_levels: int) -> tuple[jax.Array, jax.Array]:
    """Upper and lower edge of x_0's bin in standard deviations of p; finite whatever p is."""
    half_width = bin_half_width(num_levels)
    inverse_std = jnp.exp(-0.5 * jnp.clip(p.log_variance, -60.0, 60.0))
    upper = inverse_std * (x_0 - p.mean + half_width)
    lower = inverse_std * (x_0 - p.mean - half_width)
    return jnp.clip(upper, -1e4, 1e4), jnp.clip(lower, -1e4, 1e4)


def _open_ends(x_0: X, first: jax.Array, last: jax.Array, inner: jax.Array) -> jax.Array:
    """The first bin reaches down to -infinity, the last one up to infinity (DDPM Eq. 13)."""
    return jnp.where(x_0 < -0.999, first, jnp.where(x_0 > 0.999, last, inner))


def tanh_decoder(x_0: X, p: Gaussian, num_levels: int = 256) -> Float[Array, "..."]:
    """Log-probability of the discrete x_0 under the discretized Gaussian p (DDPM Eq. 13).

    The normal distribution function is the original's approximation
    (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2, which is a logistic function s of twice the
    argument of tanh; s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) then has no cancellation. The
    probability is floored at 1e-12.

    Args:
        x_0: f32[...], levels k * 2 / (num_levels - 1) - 1, from -1 to 1.
        p: mean and log-variance broadcastable to x_0.
        num_levels: how many levels the data have. The probabilities of all of them sum to 1.

    Returns:
        f32[...] in nats, in [log 1e-12, 0]; finite, with finite gradients, for finite input.
    """
    upper, lower = _bin_edges(x_0, p, num_levels)
    scale = 2.0 * np.sqrt(2.0 / np.pi)
    a = scale * (upper + 0.044715 * upper**3)
    b = scale * (lower + 0.044715 * lower**3)
    inner = (
        jax.nn.log_sigmoid(a)
        + jax.nn.log_sigmoid(-b)
        + jnp.log(-jnp.expm1(-jnp.maximum(a - b, 1e-20)))
    )
    log_prob = _open_ends(x_0, jax.nn.log_sigmoid(a), jax.nn.log_sigmoid(-b), inner)
    return jnp.maximum(log_prob, FLOOR_NATS)


def exact_decoder(x_0: X, p: Gaussian, num_levels: int = 256) -> Float[Array, "..."]:
    """Log-probability of the discrete x_0 under the discretized Gaussian p (DDPM Eq. 13).

    With the normal distribution function itself and no floor, so that far residuals cost what they
    should; within two standard deviations it differs from `tanh_decoder` by hundredths of a bit.

    Args and Returns: as for `tanh_decoder`, without its lower limit.
    """
    upper, lower = _bin_edges(x_0, p, num_levels)
    # In the upper half the tail on the other side is the same number without cancellation.
    flip = upper + lower > 0.0
    a, b = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    log_a, log_b = jax.scipy.special.log_ndtr(a), jax.scipy.special.log_ndtr(b)
    inner = log_a + jnp.log(-jnp.expm1(-jnp.maximum(log_a - log_b, 1e-20)))
    return _open_ends(
        x_0, jax.scipy.special.log_ndtr(upper), jax.scipy.special.log_ndtr(-lower), inner
    )


def vlb_term(
    now: Schedule,
    prediction: Prediction,
    x_0: Float[Array, "b *x"],
    x_t: Float[Array, "b *x"],
    *,
    decoder: Decoder = tanh_decoder,
) -> Float[Array, " b"]:
    """The bound's term at t, L_t of DDPM Eq. 5 in the paper's own count, in nats per dimension.

    For t > 0 it is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in closed form; L_0 is
    -log p(x_0 | x_1) under `decoder`. `now` holds the tables at t, to go with x_t (`forward.at`).
    """
    p = Gaussian(prediction.mean, prediction.log_variance)
    divergence = mean_per_example(normal_kl(q_posterior(now, x_0, x_t), p))
    reconstruction = mean_per_example(-decoder(x_0, p))
    first = now.posterior_variance.ravel() == 0.0  # x_{t-1} is x_0 itself
    return jnp.where(first, reconstruction, divergence)


def prior_term(
    schedule: Schedule, x_0: Float[Array, "b *x"], deviation: float = 1.0
) -> Float[Array, " b"]:
    """L_T = KL(q(x_T | x_0) || N(0, deviation^2 I)) of DDPM Eq. 5: f32[B] in nats per dimension.

    Args:
        deviation: of x_T, that of a path's end; 1 of a chain.
    """
    last = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1)
    prior = Gaussian(jnp.zeros(()), jnp.asarray(2.0 * np.log(deviation), jnp.float32))
    return mean_per_example(normal_kl(q_marginal(schedule, x_0, last), prior))


class Terms(NamedTuple):
    """The bound's terms at given timesteps, and how far the estimate of x_0 is off there."""

    nats: Float[Array, "s b"]  # per dimension; L_0 where t = 0, the divergence L_t elsewhere
    x_0_mse: Float[Array, "s b"]  # mean squared error of the estimate of x_0


def bound_terms(
    schedule: Schedule,
    denoise: BoundDenoise,
    x_0: Float[Array, "b *x"],
    keys: Key[Array, " b"],
    timesteps: Int[Array, "s b"],
    *,
    at_once: int = 1,
    decoder: Decoder = tanh_decoder,
) -> Terms:
    """Terms of the bound, each at one draw of x_t ~ q(x_t | x_0) (DDPM Eq. 5).

    Args:
        x_0: f32[B, ...] in [-1, 1].
        keys: one key per example; example i's noise at t depends on (keys[i], t) alone.
        timesteps: i32[S, B], the timesteps of every example.
        at_once: rows of `timesteps` in one evaluation of the network, a divisor of S.
        decoder: log-probability of x_0 given p(x_0 | x_1).

    Raises:
        ValueError: if at_once does not divide S.
    """
    rows, batch = timesteps.shape
    if rows % at_once:
        raise ValueError(f"{rows} rows of timesteps cannot be evaluated {at_once} at once.")
    x_0_rows = jnp.tile(x_0, (at_once, *[1] * (x_0.ndim - 1)))
    keys_rows = jnp.tile(keys, at_once)

    def body(carry: None, t: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x_t = q_sample(schedule, x_0_rows, t, normal(keys_rows, t, x_0.shape[1:]))
        prediction = denoise(x_t, t)
        nats = vlb_term(at(schedule, t, x_t), prediction, x_0_rows, x_t, decoder=decoder)
        return carry, (nats, mean_per_example(jnp.square(prediction.x_0 - x_0_rows)))

    _, results = jax.lax.scan(body, None, timesteps.reshape(rows // at_once, at_once * batch))
    return Terms(*(result.reshape(rows, batch) for result in results))


def stratified_timesteps(
    keys: Key[Array, " b"], num_timesteps: int, num_strata: int
) -> tuple[Int[Array, "s b"], Float[Array, " s"]]:
    """One timestep out of each of `num_strata` parts of 1 .. T-1, and the parts' sizes.

    The sum over strata of size times L_t estimates the sum of all L_t, t > 0, without bias. The
    parts begin with single timesteps and grow linearly, because the largest terms and the steepest
    changes lie near t = 0.

    Raises:
        ValueError: unless 1 <= num_strata < T.
    """
    if not 1 <= num_strata < num_timesteps:
        raise ValueError(f"{num_strata} strata of 1 .. T-1 need 1 to {num_timesteps - 1} of them.")
    index = np.arange(num_strata + 1)
    edges = np.rint(1 + (num_timesteps - 1) * (index / num_strata) ** 2).astype(np.int32)
    edges = np.maximum(edges, 1 + index)
    sizes = np.diff(edges).astype(np.int32)[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (num_strata,)))(keys).T
    t = jnp.asarray(edges[:-1, None]) + jnp.minimum((draws * sizes).astype(jnp.int32), sizes - 1)
    return t, jnp.asarray(sizes[:, 0], jnp.float32)


DECODERS: MappingProxyType[str, Any] = MappingProxyType(
    {"tanh": tanh_decoder, "exact": exact_decoder}
)
