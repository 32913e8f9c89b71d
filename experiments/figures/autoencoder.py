"""Figures of a VAE: what it keeps of images, and what lies around and between their latents."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from experiments import devices, images
from experiments.figures.figure import Context, Figure, grid, real_images
from experiments.methods.method import VAE, vae_of

SPREAD = 2.5  # deviations to either side, of traversals and of the latent grid


class _Codes:
    """A VAE with its parameters: images to latents and back, compiled."""

    def __init__(self, context: Context, purpose: str) -> None:
        experiment = context.experiment
        self.context, latents = context, experiment.encoder.latents
        self.vae: VAE = latents.vae if latents else vae_of(experiment.method, purpose)
        params = latents.params if latents else context.params
        levels = experiment.dataset.num_levels

        def encode(params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
            q = self.vae.encode(params, images.to_model(image, levels))
            return q.mean, jnp.exp(0.5 * q.log_variance)

        def decode(params: Any, z: jax.Array) -> jax.Array:
            return images.to_uint8(self.vae.likelihood.mean(self.vae.decode(params, z)), levels)

        jit: Callable[..., Any] = functools.partial(devices.jit, precision=devices.REPORTED)
        first, second = jit(encode), jit(decode)
        self.encode = lambda image: tuple(map(np.asarray, first(params, image)))
        self.decode = lambda z: np.asarray(second(params, jnp.asarray(z, jnp.float32)))

    def grid(self, z: np.ndarray) -> np.ndarray:
        """Pictures of latents [rows, columns, ...]."""
        pictures = self.decode(z.reshape(-1, *self.vae.latent_shape))
        return pictures.reshape(*z.shape[:2], *pictures.shape[1:])


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 images, f64[n] in decibels, 100 where they are equal."""
    difference = one.astype(np.float64) - other.astype(np.float64)
    error = np.square(difference).reshape(len(one), -1).mean(1)
    return 10.0 * np.log10(255.0**2 / np.maximum(error, 255.0**2 * 1e-10))


def reconstructions(context: Context) -> Figure:
    """Held-out images, each above what is decoded from the mean of q(z | x)."""
    codes = _Codes(context, "The figure reconstructions")
    columns, pairs = context.config.columns, context.config.rows // 2 or 1
    real = real_images(context, columns * pairs)["image"]
    columns = min(columns, len(real))
    real = real[: len(real) // columns * columns]
    rebuilt = codes.decode(codes.encode(real)[0])
    rows = [part.reshape(-1, columns, *real.shape[1:]) for part in (real, rebuilt)]
    pictures = np.stack(rows, axis=1).reshape(-1, columns, *real.shape[1:])
    found = psnr(real, rebuilt)
    caption = (
        "Images that were not trained on, and below each what the decoder makes of the mean of "
        f"q(z | x): {found.mean():.1f} dB in the mean of {len(real)}."
    )
    arrays = {"real": real, "rebuilt": rebuilt, "psnr": found}
    words = ["x", "decoded"] * (len(pictures) // 2)
    return Figure("Reconstructions", caption, arrays, grid(pictures, words))


def traversals(context: Context) -> Figure:
    """One coordinate of z at a time, from -2.5 to 2.5 deviations of the prior.

    The coordinates whose means vary most over images, so that they are those that are used.
    """
    codes = _Codes(context, "The figure traversals")
    means, _ = codes.encode(real_images(context, 200)["image"])
    flat = means.reshape(len(means), -1)
    order = np.argsort(-flat.var(axis=0))[: context.config.rows]
    steps = np.linspace(-SPREAD, SPREAD, context.config.columns)
    z = np.repeat(flat[:1], len(order) * len(steps), 0).reshape(len(order), len(steps), -1)
    for row, coordinate in enumerate(order):
        z[row, :, coordinate] = steps
    pictures = codes.grid(z.reshape(len(order), len(steps), *codes.vae.latent_shape))
    caption = (
        "One image, and a coordinate of its z in each row set to values from -2.5 to 2.5; the "
        "coordinates whose means vary most from image to image come first."
    )
    words = [f"z_{i}" for i in order]
    arrays = {"pictures": pictures, "coordinates": order, "values": steps}
    return Figure("Traversals", caption, arrays, grid(pictures, words, [f"{s:.1f}" for s in steps]))


def latent_grid(context: Context) -> Figure:
    """The plane of the first two coordinates of z, at equal quantiles of the prior.

    Kingma and Welling, Figure 4; of more coordinates the others stay 0, and of images of latents
    every place has the same two channels.
    """
    codes = _Codes(context, "The figure latent_grid")
    count, shape = context.config.columns, codes.vae.latent_shape
    places = norm.ppf((np.arange(count) + 0.5) / count)
    z = np.zeros((count, count, *shape))
    z[..., 0] = places.reshape(1, -1, *[1] * (len(shape) - 1))
    if shape[-1] > 1:
        z[..., 1] = places[::-1].reshape(-1, 1, *[1] * (len(shape) - 1))
    pictures = codes.grid(z)
    others = "" if shape == (2,) else ", all others 0"
    caption = (
        "What is decoded from the plane of the first two coordinates of z, which grow to the right "
        f"and upwards by equal shares of the prior{others} (Kingma and Welling 2014, Figure 4)."
    )
    words = [f"{place:.1f}" for place in places]
    arrays = {"pictures": pictures, "places": places}
    return Figure("Latent grid", caption, arrays, grid(pictures, words[::-1], words))


def latent_interpolation(context: Context) -> Figure:
    """From one held-out image to another: in z, and below it in pixels."""
    codes = _Codes(context, "The figure latent_interpolation")
    pairs = max(1, context.config.rows // 2)
    real = real_images(context, 2 * pairs)["image"]
    pairs = len(real) // 2
    first, last = real[:pairs], real[pairs : 2 * pairs]
    share = np.linspace(0.0, 1.0, context.config.columns)
    start, stop = codes.encode(first)[0], codes.encode(last)[0]

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        mix = share.reshape(1, -1, *[1] * (a.ndim - 1))
        return (1.0 - mix) * a[:, None] + mix * b[:, None]

    decoded = codes.grid(between(start, stop))
    blended = np.round(between(first.astype(float), last.astype(float))).astype(np.uint8)
    pictures = np.stack([decoded, blended], axis=1).reshape(-1, *decoded.shape[1:])
    caption = (
        "Between two images that were not trained on: along a straight line in z, decoded, and "
        "below it the two images faded into each other pixel by pixel."
    )
    words = ["latents", "pixels"] * pairs
    arrays = {"decoded": decoded, "blended": blended}
    return Figure("Interpolation of latents", caption, arrays, grid(pictures, words))
