"""The variational bound of infinitely many steps, of a model in continuous time.

"VDM Eq. n" is Kingma et al. (2021), "Variational diffusion models", arXiv:2107.00630.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion.forward import fit
from diffusion.likelihood import Decoder, bound_terms, mean_per_example, prior_term, tanh_decoder
from diffusion.paths import at, place, points
from diffusion.random import normal
from diffusion.structs import BoundDenoise, Path, Point, Process

BoundEstimate = Callable[[jax.Array, jax.Array], jax.Array]  # (x f32[B, ...], u f32[B]) -> x_0


class ContinuousBound(NamedTuple):
    """The bound of each example in nats per dimension, and what it is made of."""

    prior: Float[Array, " b"]  # at the path's end
    divergence: Float[Array, " b"]  # the integral between the ends, an estimate without bias
    decoder: Float[Array, " b"]  # at the path's start

    @property
    def total(self) -> Float[Array, " b"]:
        """An upper limit of -log p(x_0) in the mean over the noise."""
        return self.prior + self.divergence + self.decoder


def _log_angles(path: Path) -> tuple[float, float]:
    """Logarithms of the angle at the path's start and end, from float64."""
    ends = points(path, [path.start, path.end])
    start, end = np.log(np.arctan2(ends.noise, ends.signal))
    return float(start), float(end)


def stratified(path: Path, keys: Key[Array, " b"], num_strata: int) -> Float[Array, "s b"]:
    """One u out of each of `num_strata` parts of a path, equally long in the log of the angle.

    The angle is atan(noise / signal): 0 is clean and pi / 2 pure noise. There the integrand of the
    bound is finite on all paths: near clean data, where the estimate of x_0 is off by about the
    noise, it is about constant, and pure noise is no infinity.

    Args:
        keys: one per example, of which alone its u depend.
    """
    start, end = _log_angles(path)
    within = jax.vmap(lambda key: jax.random.uniform(key, (num_strata,)))(keys).T
    shares = (jnp.arange(num_strata)[:, None] + within) / num_strata
    angle = jnp.exp(start + (end - start) * shares)
    return place(path, jnp.log(jnp.maximum(jnp.cos(angle), 0.0) / jnp.sin(angle)))


def _weight(now: Point) -> jax.Array:
    """-1/2 d SNR / d log(angle), of now's shape; SNR = 1 / tan(angle)^2."""
    square = jnp.square(now.signal) + jnp.square(now.noise)
    return now.signal * square / now.noise**3 * jnp.arctan2(now.noise, now.signal)


def continuous_bound(
    process: Process,
    denoise: BoundDenoise,
    estimate: BoundEstimate,
    x_0: Float[Array, "b *x"],
    keys: Key[Array, " b"],
    *,
    num_strata: int,
    decoder: Decoder = tanh_decoder,
) -> ContinuousBound:
    """The bound of a path with infinitely many steps, from `num_strata` of its points.

    Between the ends it is -1/2 of the integral of E|x_0 - x_0(x_u, u)|^2 over the SNR (VDM
    Eq. 15, section 5.1), whatever the path between; prior and decoder are those of its chains.

    Args:
        process: with a path, its chain from the path's start to its end.
        denoise: (x_t, t) -> Prediction on the chain; of t = 0 only.
        estimate: of x_0.
        x_0: f32[B, ...] in [-1, 1].
        keys: one per example, of which alone its noise and its u depend.
        decoder: log-probability of x_0 given p(x_0 | x_u) at the start.

    Raises:
        ValueError: for a chain, and unless num_strata >= 1.
    """
    if (path := process.path) is None:
        raise ValueError(
            "the bound of infinitely many steps is of a path in continuous time, and a chain has "
            "its own number of steps. Choose the bound of the chain, or a path."
        )
    if num_strata < 1:
        raise ValueError(f"num_strata = {num_strata} must be 1 or more.")
    start, end = _log_angles(path)
    split = jax.vmap(jax.random.split)(keys)

    def body(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        k, u = row
        now = at(path, u)
        here = fit(now, x_0)
        x_u = here.signal * x_0 + here.noise * normal(split[:, 0], k, x_0.shape[1:])
        error = mean_per_example(jnp.square(estimate(x_u, u) - x_0))
        return total + _weight(now) * error, None

    rows = (jnp.arange(num_strata), stratified(path, split[:, 1], num_strata))
    total, _ = jax.lax.scan(body, jnp.zeros(len(x_0)), rows)
    first = jnp.zeros((1, len(x_0)), jnp.int32)
    return ContinuousBound(
        prior_term(process.schedule, x_0, path.deviation),
        total * ((end - start) / num_strata),
        bound_terms(process.schedule, denoise, x_0, keys, first, decoder=decoder).nats[0],
    )
