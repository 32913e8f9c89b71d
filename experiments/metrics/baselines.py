"""Models so simple that every trained one must beat them, and the metric `baselines` of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import likelihood
from diffusion.reverse import Denoise, make_denoise
from diffusion.structs import Gaussian
from experiments import console, images
from experiments.data.dataset import Source, gather, read_images
from experiments.methods.method import Chain
from experiments.metrics.bound import evaluate_bound, standard_error
from experiments.metrics.metric import Context, Result, image_protocol, line, number, which_images


def _training_images(train: Source) -> Iterator[np.ndarray]:
    """Every image of a small set, 10,000 evenly spaced ones of a large one: u8[n, H, W, C] parts.

    Parts keep memory bounded.
    """
    chosen = np.linspace(0, len(train) - 1, min(len(train), 10_000)).round().astype(int)
    for part in console.track(np.array_split(chosen, -(-chosen.size // 500)), "counting images"):
        yield gather(train, part.tolist())["image"]


def _level_numbers(pictures: np.ndarray, num_levels: int) -> np.ndarray:
    """Stored u8[...] as level numbers 0 .. num_levels - 1, f64[...]; see `images.to_model`."""
    return np.rint(pictures * ((num_levels - 1) / 255.0))


def fit_gaussian(train: Source, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance f64[H, W, C] of every pixel and channel in [-1, 1].

    The square of one level's width is added to the variance, so that constant pixels stay finite.
    """
    first, second = np.zeros((2, *train[0]["image"].shape))
    count = 0
    for part in _training_images(train):
        x = _level_numbers(part, num_levels) / ((num_levels - 1) / 2.0) - 1.0
        first, second = first + x.sum(axis=0), second + np.square(x).sum(axis=0)
        count += len(x)
    mean = first / count
    width = 2.0 * likelihood.bin_half_width(num_levels)
    return mean, second / count - np.square(mean) + width**2


def _bits_per_dim(
    test: Source, num_images: int, nats: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """f64[N] of the first images, from -log p in nats of every dimension of u8[n, H, W, C]."""
    bits = []
    for start in console.track(range(0, num_images, 500), "baselines"):
        found = nats(read_images(test, start, min(start + 500, num_images))["image"])
        bits.append(np.asarray(found, np.float64).reshape(len(found), -1).mean(axis=1) / np.log(2))
    return np.concatenate(bits)


def gaussian_per_pixel(train: Source, test: Source, num_images: int, num_levels: int) -> np.ndarray:
    """bits/dim f64[N] of test images under one Gaussian per pixel and channel, fitted to `train`.

    Discretized to the levels like the decoder of DDPM Eq. 13.
    """
    mean, variance = fit_gaussian(train, num_levels)
    gaussian = Gaussian(jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(variance, jnp.float32)))

    def nats(pictures: np.ndarray) -> np.ndarray:
        x_0 = images.to_model(jnp.asarray(pictures), num_levels)
        return -np.asarray(likelihood.exact_decoder(x_0, gaussian, num_levels))

    return _bits_per_dim(test, num_images, nats)


def histogram_per_pixel(
    train: Source, test: Source, num_images: int, num_levels: int
) -> np.ndarray:
    """bits/dim f64[N] of test images under one histogram of the levels per pixel and channel.

    Counted on `train`, one more than seen of every level (Laplace's rule), so that no level is
    impossible. It knows the levels and nothing of how pixels go together.
    """
    position = np.arange(train[0]["image"].size)
    counts, seen = np.ones((position.size, num_levels), np.uint32), num_levels

    def levels(pictures: np.ndarray) -> np.ndarray:
        return _level_numbers(pictures, num_levels).astype(int).reshape(len(pictures), -1)

    for part in _training_images(train):
        seen += len(part)
        for level in levels(part):  # one image at a time: no position comes twice
            counts[position, level] += 1
    return _bits_per_dim(
        test, num_images, lambda part: -np.log(counts[position, levels(part)] / seen)
    )


def uniform_over_levels(num_levels: int) -> float:
    """log2(num_levels): bits/dim of whoever knows the levels and nothing else."""
    return float(np.log2(num_levels))


Read = Callable[[int, int], np.ndarray]  # (start, stop) -> images start .. stop - 1, u8[N, H, W, C]


def _each(draw: Callable[[np.random.Generator], np.ndarray], seed: int) -> Read:
    """Images of which the i-th is a function of (seed, i) alone, made when they are read."""

    def read(start: int, stop: int) -> np.ndarray:
        keys = [np.random.PCG64([seed, i]) for i in range(start, stop)]
        return np.stack([draw(np.random.Generator(key)) for key in keys])

    return read


def gaussian_samples(train: Source, num_levels: int, seed: int) -> Read:
    """Images drawn from the Gaussian per pixel, what a model of single pixels can do."""
    mean, variance = fit_gaussian(train, num_levels)
    normal = _each(lambda random: random.standard_normal(mean.shape), seed)

    def read(start: int, stop: int) -> np.ndarray:
        x = mean + np.sqrt(variance) * normal(start, stop)
        return np.asarray(images.to_uint8(jnp.asarray(x), num_levels))

    return read


def noise_samples(shape: tuple[int, ...], num_levels: int, seed: int) -> Read:
    """Images of independent uniform levels."""

    def draw(random: np.random.Generator) -> np.ndarray:
        level = random.integers(0, num_levels, shape, np.uint8)
        return np.floor(level * (255 / (num_levels - 1)) + 0.5).astype(np.uint8)

    return _each(draw, seed)


def density_baselines(context: Context) -> Result:
    """bits/dim of what knows the levels, the pixels one by one, or the chain without a network."""
    experiment, dataset = context.experiment, context.experiment.dataset
    train, levels = dataset.open("train"), dataset.num_levels
    found = {}
    scratch: tuple[Path, ...] = ()
    protocol = image_protocol(context) | {"quantity": "bits/dim of baselines"}
    if experiment.method.chain is not None:
        config = experiment.config.evaluate
        protocol |= {"decoder": config.decoder, "clip_denoised": config.clip_denoised}
        protocol["num_draws"] = config.num_draws
        scratch = (context.folder("untrained", protocol),)
        denoise = untrained_denoise(experiment.method.chain)
        arguments = (context.source, context.num_images, context.mesh, scratch[0])
        table = evaluate_bound(experiment, denoise, {}, *arguments)
        found["untrained_network"] = table.total
    for fit in (gaussian_per_pixel, histogram_per_pixel):
        found[fit.__name__] = fit(train, context.source, context.num_images, levels)
    values = {name: number(bits.mean(), standard_error(bits)) for name, bits in found.items()}
    values["uniform_over_levels"] = number(uniform_over_levels(levels))
    lines = [
        f"bits/dim  of {which_images(context)}, without what was learned",
        *(line(name.replace("_", " "), value) for name, value in values.items()),
    ]
    return Result(values, protocol, (), lines, scratch)


def untrained_denoise(chain: Chain) -> Denoise:
    """The reverse process of a network that returns zeros, as it does at first."""
    channels = 1 + chain.process.variance.extra_channels

    def zeros(params: Any, x_t: jax.Array, t: jax.Array, **condition: Any) -> jax.Array:
        return jnp.zeros((*x_t.shape[:-1], x_t.shape[-1] * channels))

    return make_denoise(zeros, chain.process, threshold=chain.threshold)
