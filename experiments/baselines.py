"""Density models so simple that every trained model must beat them."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffusion import likelihood
from diffusion.structs import Gaussian
from experiments import data, images


def fit_pixels(train: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance f64[H, W, C] of every pixel and channel in [-1, 1].

    Reads every image of a small set and 10,000 evenly spaced ones of a large one. One level's
    variance is added, so that constant pixels stay finite.
    """
    first, second = np.zeros((2, *train[0]["image"].shape))
    chosen = np.linspace(0, len(train) - 1, min(len(train), 10_000)).round().astype(int)
    for part in np.array_split(chosen, -(-chosen.size // 500)):
        x = data.gather(train, part.tolist())["image"] / 127.5 - 1.0
        first, second = first + x.sum(axis=0), second + np.square(x).sum(axis=0)
    mean = first / chosen.size
    return mean, second / chosen.size - np.square(mean) + (2.0 / 255.0) ** 2


def pixel_gaussian(train: data.Source, test: data.Source, num_images: int) -> np.ndarray:
    """bits/dim f64[N] of test images under one Gaussian per pixel and channel, fitted to `train`.

    Discretized to 256 levels like the decoder of DDPM Eq. 13.
    """
    mean, variance = fit_pixels(train)
    gaussian = Gaussian(jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(variance, jnp.float32)))
    bits = []
    for start in range(0, num_images, 500):
        x_0 = data.read(test, start, min(start + 500, num_images))["image"]
        nats = -likelihood.exact_decoder(images.to_model(jnp.asarray(x_0)), gaussian)
        bits.append(likelihood.to_bits_per_dim(likelihood.mean_per_example(nats)))
    return np.concatenate([np.asarray(part, np.float64) for part in bits])


Read = Callable[[int, int], np.ndarray]  # (start, stop) -> images start .. stop - 1, u8[N, H, W, C]


def _each(draw: Callable[[np.random.Generator], np.ndarray], seed: int) -> Read:
    """Images of which the i-th is a function of (seed, i) alone, made when they are read."""

    def read(start: int, stop: int) -> np.ndarray:
        keys = [np.random.PCG64([seed, i]) for i in range(start, stop)]
        return np.stack([draw(np.random.Generator(key)) for key in keys])

    return read


def pixel_samples(train: data.Source, seed: int) -> Read:
    """Images drawn from that Gaussian, what a model of single pixels can do."""
    mean, variance = fit_pixels(train)
    normal = _each(lambda random: random.standard_normal(mean.shape), seed)

    def read(start: int, stop: int) -> np.ndarray:
        x = mean + np.sqrt(variance) * normal(start, stop)
        return np.asarray(images.to_uint8(jnp.asarray(x)))

    return read


def noise_samples(shape: tuple[int, ...], seed: int) -> Read:
    """Images of independent uniform levels."""
    return _each(lambda random: random.integers(0, 256, shape, np.uint8), seed)
