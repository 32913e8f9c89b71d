"""What else the variational bound can be written as, and what bounds its parts.

DDPM's Eq. 5 is what training and evaluation use (`likelihood`); the forms here are for seeing why,
and for reading texts that write the bound otherwise. Everything is in nats.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.forward import at, q_sample, q_step
from diffusion.likelihood import (
    Decoder,
    mean_per_example,
    normal_kl,
    prior_term,
    tanh_decoder,
    vlb_term,
)
from diffusion.random import normal
from diffusion.structs import BoundDenoise, Gaussian, Schedule
from diffusion.vae import normal_log_density, reparameterize

Carry = tuple[jax.Array, jax.Array, jax.Array]


def consistency_terms(
    schedule: Schedule,
    denoise: BoundDenoise,
    x_0: Float[Array, "b *x"],
    keys: Key[Array, " b"],
    timesteps: Int[Array, " s"],
) -> Float[Array, "s b"]:
    """log q(x_t | x_{t-1}) - log p(x_t | x_{t+1}), f32[S, B] nats per dimension: a step and its way
    back, both asked for the same x_t.

        L = E -log p(x_0 | x_1) + sum_{t=1}^{T-1} E log q(x_t | x_{t-1}) / p(x_t | x_{t+1})
            + E KL(q(x_T | x_{T-1}) || p(x_T))

    is DDPM's Eq. 3 with its factors paired otherwise, so that its mean is the bound's. A term by
    itself, as here, varies more than that of Eq. 5: it draws three neighbours on a path where Eq. 5
    draws one. The sum along one path need not (`along_a_path`). Texts write each term as
    KL(q(x_t | x_{t-1}) || p(x_t | x_{t+1})) under x_{t-1} and x_{t+1} drawn together; that is
    another number: given both, x_t is not q(x_t | x_{t-1}). It is larger by
    E cov(x_t, mu(x_{t+1}) | x_{t-1}) / sigma^2, for p = N(mu, sigma^2), and so wherever the mean
    follows its input, as that of the true reverse process does.

    Args:
        x_0: f32[B, ...] in [-1, 1].
        keys: one an example; the path of each t is its own, a function of (key, t).
        timesteps: i32[S] in [0, T), as the schedule counts: entry t is about x_{t+1} of the paper's
            count, and the last, T - 1, is the divergence from N(0, I).
    """
    last, shape = schedule.num_timesteps - 1, x_0.shape[1:]

    def term(carry: None, t: jax.Array) -> tuple[None, jax.Array]:
        times = jnp.full(len(x_0), t)
        before, after = jnp.maximum(times - 1, 0), jnp.minimum(times + 1, last)
        first, second, third = (normal(keys, 3 * t + i, shape) for i in range(3))
        x_before = jnp.where(t == 0, x_0, q_sample(schedule, x_0, before, first))
        forward = q_step(schedule, x_before, times)
        x_t = reparameterize(forward, second)
        x_after = reparameterize(q_step(schedule, x_t, after), third)
        back = denoise(x_after, after)
        ratio = normal_log_density(x_t, forward) - normal_log_density(
            x_t, Gaussian(back.mean, back.log_variance)
        )
        zero = jnp.zeros(())
        end = normal_kl(forward, Gaussian(zero, zero))
        return carry, mean_per_example(jnp.where(t == last, end, ratio))

    _, found = jax.lax.scan(term, None, timesteps)
    return found


def along_a_path(
    schedule: Schedule,
    denoise: BoundDenoise,
    x_0: Float[Array, "b *x"],
    keys: Key[Array, " b"],
    *,
    decoder: Decoder = tanh_decoder,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The whole bound at one path x_1 .. x_T of each example, f32[B] nats per dimension each: by
    Eq. 5 and in the consistency form.

    Both have the same mean. Along a path the ratios of the second cancel each other's noise, those
    of the true reverse process altogether: their product is p(x_0), but for the divergence at the
    end. Eq. 5 integrates x_{t-1} out term by term, and keeps the noise of every x_t.

    Args:
        x_0, decoder: as for `likelihood.bound_terms`.
        keys: one an example; x_t is a function of (key, t) and the x_{t-1} before it.
    """
    last, zero = schedule.num_timesteps - 1, jnp.zeros(())

    def step(carry: Carry, t: jax.Array) -> tuple[Carry, None]:
        x_before, closed, ratios = carry
        times = jnp.full(len(x_0), t)
        forward = q_step(schedule, x_before, times)
        x_t = reparameterize(forward, normal(keys, t, x_0.shape[1:]))
        back = denoise(x_t, times)
        term = vlb_term(at(schedule, times, x_t), back, x_0, x_t, decoder=decoder)
        returned = normal_log_density(x_before, Gaussian(back.mean, back.log_variance))
        gone = jnp.where(
            t == last,
            normal_kl(forward, Gaussian(zero, zero)),
            normal_log_density(x_t, forward),
        )
        ratio = mean_per_example(gone) + jnp.where(t == 0, term, -mean_per_example(returned))
        return (x_t, closed + term, ratios + ratio), None

    none = jnp.zeros(len(x_0), x_0.dtype)
    _, closed, ratios = jax.lax.scan(step, (x_0, none, none), jnp.arange(last + 1))[0]
    return closed + prior_term(schedule, x_0), ratios


def entropy_bounds(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of H(x_{t-1} | x_t), f64[T] nats per dimension, t = 0 left at -inf.

    For data whose coordinates have variance 1 at most (Sohl-Dickstein et al. 2015, appendix A):
    given x_0 too, x_{t-1} has the variance beta-tilde_t, and forgetting x_0 only adds entropy; the
    normal distribution of variance beta_t has the most for its variance. These are the entropies of
    `fixed_small` and `fixed_large`.
    """
    with np.errstate(divide="ignore"):
        small = np.log(np.asarray(schedule.posterior_variance, np.float64))
    large = np.log(np.asarray(schedule.beta, np.float64))
    constant = np.log(2.0 * np.pi * np.e)
    return 0.5 * (constant + small), 0.5 * (constant + large)


def tangent(x: Float[Array, "..."], touching: Float[Array, "..."]) -> Float[Array, "..."]:
    """The line lambda x - log lambda - 1 >= log x, which touches where x = 1 / lambda.

    The logarithm as the least of a family of lines (Jordan et al. 1999, section 4.1): the simplest
    variational bound, in which the parameter that is optimised is where the bound touches.

    Args:
        touching: lambda > 0.
    """
    return touching * x - jnp.log(touching) - 1.0


def learned_betas(raw: Float[Array, " t"]) -> Schedule:
    """All tables of the chain with variances sigmoid(raw), differentiable in `raw`; float32.

    For forward variances that are learned with the network, by reparameterization (DDPM, section
    2, which then holds them constant): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    passes the gradient of the whole bound, L_T included. The chain should not be too long: where
    `schedules.from_betas` derives its tables in float64, this has float32 only.
    """
    beta = jax.nn.sigmoid(raw)
    # log(1 - beta) and 1 - alpha_bar without subtracting near-equal numbers.
    log_alpha_bar = jnp.cumsum(jax.nn.log_sigmoid(-raw))
    log_alpha_bar_prev = jnp.concatenate([jnp.zeros(1), log_alpha_bar[:-1]])
    one_minus = -jnp.expm1(log_alpha_bar)
    one_minus_prev = jnp.concatenate([jnp.zeros(1), one_minus[:-1]])
    posterior = beta * one_minus_prev / one_minus
    positive = jnp.concatenate([posterior[1:2], posterior[1:]]) if len(raw) > 1 else beta
    log_beta = jax.nn.log_sigmoid(raw)
    return Schedule(
        beta=beta,
        alpha=1.0 - beta,
        alpha_bar=jnp.exp(log_alpha_bar),
        alpha_bar_prev=jnp.exp(log_alpha_bar_prev),
        noise_variance=one_minus,
        signal=jnp.exp(0.5 * log_alpha_bar),
        noise=jnp.sqrt(one_minus),
        log_beta=log_beta,
        large_log_variance=jnp.concatenate([jnp.log(positive[:1]), log_beta[1:]]),
        posterior_variance=posterior,
        posterior_log_variance=jnp.log(positive),
        posterior_mean_x_0=beta * jnp.exp(0.5 * log_alpha_bar_prev) / one_minus,
        posterior_mean_x_t=one_minus_prev * jnp.sqrt(1.0 - beta) / one_minus,
        told=jnp.arange(len(raw), dtype=jnp.int32),
    )


def reverse_conditional(
    weights: Float[Array, " k"],
    means: Float[Array, " k"],
    deviations: Float[Array, " k"],
    x_t: float,
    beta: float,
    x: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The density of q(x_{t-1} | x_t) at x, for x_{t-1} of a mixture of normal distributions.

    One step of the chain of variance beta. For a small beta it is nearly a normal distribution, and
    that is why DDPM's Eq. 1 can be one; for a large beta it has as many peaks as the mixture.
    """
    prior = jnp.sum(
        weights
        * jnp.exp(-0.5 * jnp.square((x[:, None] - means) / deviations))
        / (deviations * jnp.sqrt(2.0 * jnp.pi)),
        axis=1,
    )
    step = jnp.exp(-0.5 * jnp.square(x_t - jnp.sqrt(1.0 - beta) * x) / beta)
    unnormalised = prior * step
    return unnormalised / jnp.trapezoid(unnormalised, x)
