"""The variational autoencoder (Kingma and Welling 2014): its bound, and what a pixel is under it.

    log p(x) >= E_q(z | x) log p(x | z) - KL(q(z | x) || p(z)),  p(z) = N(0, I)

The difference is KL(q(z | x) || p(z | x)). Everything is in nats; images lie in [-1, 1].
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.likelihood import bin_half_width, exact_decoder, normal_kl
from diffusion.structs import Gaussian, Likelihood

X = Float[Array, "..."]
LOG_TWO_PI = float(np.log(2.0 * np.pi))


def reparameterize(q: Gaussian, eps: X) -> X:
    """z = mu + sigma * eps ~ q(z | x) for eps ~ N(0, I) (Kingma and Welling, section 2.4).

    sigma is the deviation, not the variance; gradients of an expectation over eps pass through it.
    """
    return q.mean + jnp.exp(0.5 * q.log_variance) * eps


def kl_to_prior(q: Gaussian) -> X:
    """KL(q || N(0, 1)) of every coordinate, (mu^2 + sigma^2 - log sigma^2 - 1) / 2, in nats.

    Kingma and Welling, appendix B.
    """
    zero = jnp.zeros(())
    return normal_kl(q, Gaussian(zero, zero))


def full_normal_kl(
    mean_q: Float[Array, " k"],
    covariance_q: Float[Array, "k k"],
    mean_p: Float[Array, " k"],
    covariance_p: Float[Array, "k k"],
) -> Float[Array, ""]:
    """KL(q || p) in nats between normal distributions of any positive definite covariances.

    (tr(P^-1 Q) + (m_p - m_q)^T P^-1 (m_p - m_q) - k + log det P - log det Q) / 2.
    """
    factor_q, factor_p = jnp.linalg.cholesky(covariance_q), jnp.linalg.cholesky(covariance_p)
    spread = jax.scipy.linalg.solve_triangular(factor_p, factor_q, lower=True)
    apart = jax.scipy.linalg.solve_triangular(factor_p, mean_p - mean_q, lower=True)
    log_ratio = jnp.sum(jnp.log(jnp.diagonal(factor_p)) - jnp.log(jnp.diagonal(factor_q)))
    squares = jnp.sum(jnp.square(spread)) + jnp.sum(jnp.square(apart))
    return 0.5 * (squares - len(mean_q)) + log_ratio


def normal_log_density(x: X, p: Gaussian) -> X:
    """log N(x; mu, sigma^2) of every coordinate, in nats."""
    squared = jnp.square(x - p.mean) * jnp.exp(-p.log_variance)
    return -0.5 * (squared + p.log_variance + LOG_TWO_PI)


def sum_per_example(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """The sum over all axes but the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def _location_and_scale(
    num_levels: int, deviation: float | int
) -> tuple[int, Callable[..., Gaussian]]:
    """How many outputs, and output -> a Gaussian: of one deviation, or each with its own.

    A learned deviation does not fall below half the distance of two levels.
    """
    least = float(np.log(bin_half_width(num_levels)))

    def read(output: jax.Array) -> Gaussian:
        if deviation:
            return Gaussian(output, jnp.full((), 2.0 * np.log(deviation), output.dtype))
        mean, raw = jnp.split(output, 2, axis=-1)
        return Gaussian(mean, 2.0 * (least + jax.nn.softplus(raw - least)))

    return 1 if deviation else 2, read


def gaussian(num_levels: int, /, deviation: float | int = 0.0) -> Likelihood:
    """A density: the squared error, in units of the deviation; 0 learns one for every value."""
    outputs, read = _location_and_scale(num_levels, deviation)
    return Likelihood(
        outputs,
        lambda x, output: normal_log_density(x, read(output)),
        lambda output: read(output).mean,
        discrete=False,
    )


def discretized_gaussian(num_levels: int, /, deviation: float | int = 0.0) -> Likelihood:
    """The Gaussian's mass in the level's bin, as in DDPM's Eq. 13; 0 learns the deviation."""
    outputs, read = _location_and_scale(num_levels, deviation)
    return Likelihood(
        outputs,
        lambda x, output: exact_decoder(x, read(output), num_levels),
        lambda output: read(output).mean,
        discrete=True,
    )


def discretized_logistic(num_levels: int, /, deviation: float | int = 0.0) -> Likelihood:
    """The mass of a logistic distribution in the level's bin (Kingma et al. 2016, appendix C).

    `deviation` is the scale s of 1 / (1 + exp(-(x - mu) / s)); 0 learns it. The first bin reaches
    down to -infinity, the last one up to infinity.
    """
    outputs, read = _location_and_scale(num_levels, deviation)
    half_width = bin_half_width(num_levels)

    def log_prob(x: jax.Array, output: jax.Array) -> jax.Array:
        p = read(output)
        inverse = jnp.exp(-0.5 * p.log_variance)
        upper, lower = (inverse * (x - p.mean + side) for side in (half_width, -half_width))
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) has no cancellation.
        width = jnp.broadcast_to(2.0 * half_width * inverse, x.shape)
        inner = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-width))
        first, last = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        return jnp.where(x < -0.999, first, jnp.where(x > 0.999, last, inner))

    return Likelihood(outputs, log_prob, lambda output: read(output).mean, discrete=True)


def bernoulli(num_levels: int, /) -> Likelihood:
    """Black or white with a probability: the cross entropy (Kingma and Welling, appendix C.1).

    Of grey values in between it is no likelihood, though often used as one.
    """

    def log_prob(x: jax.Array, logit: jax.Array) -> jax.Array:
        white = 0.5 * (x + 1.0)
        return white * jax.nn.log_sigmoid(logit) + (1.0 - white) * jax.nn.log_sigmoid(-logit)

    return Likelihood(1, log_prob, lambda logit: jnp.tanh(0.5 * logit), discrete=num_levels == 2)


# name -> (number of levels, **options) -> Likelihood
LIKELIHOODS: MappingProxyType[str, Any] = MappingProxyType(
    {
        "gaussian": gaussian,
        "discretized_gaussian": discretized_gaussian,
        "discretized_logistic": discretized_logistic,
        "bernoulli": bernoulli,
    }
)


class Terms(NamedTuple):
    """The two terms of -ELBO, f32[B] nats of a whole image."""

    reconstruction: jax.Array  # -log p(x | z) at one draw of z
    kl: jax.Array  # KL(q(z | x) || p(z)) in closed form


def elbo_terms(
    likelihood: Likelihood,
    decode: Callable[[jax.Array], jax.Array],
    x: Float[Array, "b ..."],
    q: Gaussian,
    eps: Float[Array, "b ..."],
) -> Terms:
    """-ELBO of images, estimated at one draw of z each (Kingma and Welling, Eq. 10 with L = 1).

    Args:
        decode: z -> the decoder network's output.
        q: q(z | x), f32[B, ...].
        eps: the draws behind z, as large as q's mean.
    """
    output = decode(reparameterize(q, eps))
    reconstruction = -sum_per_example(likelihood.log_prob(x, output))
    return Terms(reconstruction, sum_per_example(kl_to_prior(q)))


def log_importance_weight(
    likelihood: Likelihood,
    decode: Callable[[jax.Array], jax.Array],
    x: Float[Array, "b ..."],
    q: Gaussian,
    eps: Float[Array, "b ..."],
) -> Float[Array, " b"]:
    """log p(x | z) + log p(z) - log q(z | x) at z = mu + sigma * eps, in nats of a whole image.

    Its mean over eps is the ELBO; the logarithm of the mean of its exponential is log p(x).
    """
    z = reparameterize(q, eps)
    log_prior = normal_log_density(z, Gaussian(jnp.zeros(()), jnp.zeros(())))
    log_posterior = normal_log_density(z, q)
    log_prob = sum_per_example(likelihood.log_prob(x, decode(z)))
    return log_prob + sum_per_example(log_prior - log_posterior)


def importance_weighted(log_weights: Float[Array, "k b"]) -> Float[Array, " b"]:
    """log (1/K) sum_k w_k, the bound of Burda et al. (2016), Eq. 8, which rises to log p(x)."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(float(len(log_weights)))
