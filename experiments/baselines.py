"""Density models so simple that every trained model must beat them."""

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


def pixel_samples(train: data.Source, count: int, seed: int) -> np.ndarray:
    """Images uint8[N, H, W, C] drawn from that Gaussian, what a model of single pixels can do."""
    mean, variance = fit_pixels(train)
    draw = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, *mean.shape))
    return np.asarray(images.to_uint8(jnp.asarray(mean + np.sqrt(variance) * draw)))


def noise_samples(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Images uint8[N, H, W, C] of independent uniform levels."""
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.integers(0, 256, (count, *shape), np.uint8)
