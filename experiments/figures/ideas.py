"""Figures of single ideas of docs/theory.md and docs/vae.md, made by name only."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import bound_forms, random
from diffusion.likelihood import bound_terms
from diffusion.structs import Prediction
from experiments import devices
from experiments.features.extractors import load_extractor, make_feature_fn
from experiments.figures.figure import DPI, Context, Figure, blank, real_images, show_picture
from experiments.methods.method import chain_of

POINTS = 2000
PAIR = (np.array([0.5, 0.5]), np.array([-1.0, 1.0]), np.array([0.3, 0.3]))  # a mixture of two


def ring_of(z: np.ndarray) -> np.ndarray:
    """g(z) = z / 10 + z / |z|, f64[n, 2]: normal draws become a ring (Doersch 2016, Figure 2)."""
    return z / 10.0 + z / np.linalg.norm(z, axis=1, keepdims=True)


def ring(context: Context) -> Figure:
    """A simple prior is enough: what a function makes of normal draws can have any shape."""
    z = np.random.default_rng(context.seed).normal(size=(POINTS, 2))
    x = ring_of(z)

    def draw(path: Path) -> None:
        canvas = blank(figsize=(6.4, 3.3))
        for axis, points, title in zip(
            canvas.subplots(1, 2), (z, x), ("z ~ N(0, I)", "z / 10 + z / |z|"), strict=True
        ):
            axis.scatter(*points.T, s=2, color="black", linewidths=0)
            axis.set(aspect="equal")
            axis.set_title(title, fontsize="small")
        canvas.savefig(path, dpi=DPI)

    caption = (
        "Draws of a normal distribution, and what one fixed function makes of them: a decoder that "
        "can be any function needs no other prior."
    )
    return Figure("A simple prior", caption, {"z": z, "x": x}, draw)


def tangents(context: Context) -> Figure:
    """The logarithm below all lines lambda x - log lambda - 1 (`bound_forms.tangent`)."""
    x = np.linspace(0.02, 4.0, 400)
    touching = np.array([0.3, 0.5, 1.0, 2.0, 4.0])
    lines = np.asarray(
        bound_forms.tangent(jnp.asarray(x, jnp.float32)[None], jnp.asarray(touching)[:, None])
    )

    def draw(path: Path) -> None:
        canvas = blank(figsize=(5, 3.3))
        axis = canvas.subplots()
        for value, line in zip(touching, lines, strict=True):
            axis.plot(x, line, linewidth=0.9, label=f"λ = {value:g}")
        axis.plot(x, np.log(x), color="black", linewidth=1.6, label="log x")
        axis.set(ylim=(-3, 3), xlabel="x")
        axis.legend(fontsize=7)
        canvas.savefig(path, dpi=DPI)

    caption = (
        "log x is the least of all lines λx − log λ − 1: to bound it is to choose a line, and the "
        "best one touches at x = 1/λ. A variational bound chooses q(z | x) in the same way."
    )
    return Figure("The variational transform", caption, {"x": x, "lines": lines}, draw)


def one_step(context: Context) -> Figure:
    """q(x_{t-1} | x_t) for a small and a large beta (`bound_forms.reverse_conditional`)."""
    x = np.linspace(-3.0, 3.0, 1201)
    betas = (0.02, 0.2, 0.6, 0.95)
    weights, means, deviations = (jnp.asarray(part, jnp.float32) for part in PAIR)
    grid = jnp.asarray(x, jnp.float32)
    densities = np.stack(
        [
            np.asarray(
                bound_forms.reverse_conditional(
                    weights, means, deviations, 0.4 * float(np.sqrt(1 - b)), b, grid
                )
            )
            for b in betas
        ]
    )

    def draw(path: Path) -> None:
        canvas = blank(figsize=(10, 2.6))
        for axis, b, density in zip(canvas.subplots(1, len(betas)), betas, densities, strict=True):
            mean = np.trapezoid(x * density, x)
            deviation = np.sqrt(np.trapezoid((x - mean) ** 2 * density, x))
            normal = np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
            axis.plot(x, density, color="black", linewidth=1.4, label="q(x_{t-1} | x_t)")
            axis.plot(x, normal, linestyle=":", linewidth=1.2, label="normal, same moments")
            axis.set_title(f"β = {b:g}", fontsize="small")
            axis.set(yticks=[])
            if b == betas[0]:  # whose one peak leaves room
                axis.legend(fontsize=6, loc="upper left")
        canvas.savefig(path, dpi=DPI)

    caption = (
        "One step back from an x_t between the two peaks of a mixture: after a step of small β the "
        "distribution of x_{t-1} is nearly normal, after a large one it has both peaks."
    )
    arrays = {"x": x, "betas": np.array(betas), "densities": densities}
    return Figure("One step back", caption, arrays, draw)


def altered(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """uint8[n, H, W, C] shifted by a pixel to the right, and without a sixteenth in the middle."""
    shifted = np.concatenate([pictures[:, :, :1], pictures[:, :, :-1]], axis=2)
    cropped = pictures.copy()
    height, width = (max(1, size // 4) for size in pictures.shape[1:3])
    middle = pictures.shape[1] // 2 - height // 2, pictures.shape[2] // 2 - width // 2
    background = pictures[:, :1, :1]
    cropped[:, middle[0] : middle[0] + height, middle[1] : middle[1] + width] = background
    return {"shifted by a pixel": shifted, "a hole in the middle": cropped}


def pixel_error(context: Context) -> Figure:
    """Why a squared error of pixels misleads, on real images: against a distance of features.

    Raises:
        ValueError, FileNotFoundError: where there is no extractor of features.
    """
    experiment = context.experiment
    config, dataset = experiment.config.evaluate, experiment.dataset
    extractor = load_extractor(config.extractor, config.inception_weights, dataset)
    features = make_feature_fn(extractor, context.mesh)
    size = devices.round_up(64, context.mesh)
    real = np.resize(real_images(context, size)["image"], (size, *dataset.image_shape))
    put = devices.sharded(context.mesh)

    def of(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(features(devices.put_global(pictures, put))[0], np.float64)

    own, changed = of(real), altered(real)
    spread = np.sqrt(np.square(own - own.mean(0)).sum(1).mean())
    numbers = {
        name: (
            np.sqrt(np.square(real.astype(float) - other).reshape(size, -1).mean(1)),
            np.linalg.norm(of(other) - own, axis=1) / spread,
        )
        for name, other in changed.items()
    }
    shown = min(context.config.columns, size)

    def draw(path: Path) -> None:
        rows = {"x": real, **changed}
        canvas = blank(figsize=(1.15 * shown, 1.5 * len(rows)))
        axes = canvas.subplots(len(rows), shown, squeeze=False)
        for row, (name, pictures) in zip(axes, rows.items(), strict=True):
            for i, axis in enumerate(row):
                show_picture(axis, pictures[i])
                axis.set(xticks=[], yticks=[])
                if name in numbers:
                    pixel, feature = (values[i] for values in numbers[name])
                    axis.set_xlabel(f"{pixel:.0f} / {feature:.2f}", fontsize=7)
            row[0].set_ylabel(name, fontsize=7)
        canvas.savefig(path, dpi=DPI)

    words = "; ".join(
        f"{name}: RMSE {pixel.mean():.1f}, features {feature.mean():.2f}"
        for name, (pixel, feature) in numbers.items()
    )
    caption = (
        f"Below each picture the root of its mean squared error (of 255) and the distance of its "
        f"features of {extractor.name} in units of their spread. In the mean of {size}: {words}."
    )
    arrays = {"real": real, **{name.replace(" ", "_"): other for name, other in changed.items()}}
    arrays |= {
        f"{name}_{kind}".replace(" ", "_"): values
        for name, pair in numbers.items()
        for kind, values in zip(("rmse", "features"), pair, strict=True)
    }
    return Figure("Pixels and features", caption, arrays, draw)


def consistency(context: Context) -> Figure:
    """Deviations of the bound in two forms, of this model on real images: by timestep, each term
    with draws of its own, and of the sum along one path.
    """
    chain = chain_of(context.experiment.method, "The figure consistency")
    schedule, last = chain.process.schedule, chain.process.schedule.num_timesteps - 1
    records = real_images(context, 16)
    half = len(records["image"])
    x_0 = jnp.tile(context.encode(records["image"]), (2, 1, 1, 1))
    labels = jnp.concatenate([jnp.asarray(records["label"])] * 2)
    keys = random.per_index(random.stream(context.seed, "consistency"), jnp.arange(len(x_0)))
    times = np.unique(np.linspace(1, last - 1, min(24, last - 1)).round().astype(np.int32))

    def terms(params: Any, x_0: jax.Array, keys: jax.Array, labels: jax.Array) -> tuple:
        inputs = chain.condition(labels)

        def denoise(x_t: jax.Array, t: jax.Array) -> Prediction:
            return chain.denoise(params, x_t, t, **inputs)

        rows = jnp.asarray(times)[:, None].repeat(len(x_0), 1)
        closed = bound_terms(schedule, denoise, x_0, keys, rows, decoder=chain.decoder).nats
        ratios = bound_forms.consistency_terms(schedule, denoise, x_0, keys, jnp.asarray(times))
        paths = bound_forms.along_a_path(schedule, denoise, x_0, keys, decoder=chain.decoder)
        return closed, ratios, *paths

    compiled = devices.jit(terms, precision=devices.REPORTED)
    *by_term, closed, ratios = (
        np.asarray(f, np.float64) for f in compiled(context.params, x_0, keys, labels)
    )
    deviations = [values.std(axis=1) for values in by_term]
    # Over paths of one image: of the images, the first half comes again as the second.
    sums = [float(np.sqrt(np.square(s[:half] - s[half:]).mean() / 2)) for s in (closed, ratios)]

    def draw(path: Path) -> None:
        canvas = blank(figsize=(5, 3.3))
        axis = canvas.subplots()
        for values, name in zip(deviations, ("L_t (Eq. 5)", "consistency form"), strict=True):
            axis.plot(times, np.maximum(values, 1e-12), label=name, linewidth=1.2)
        axis.set(xlabel="t", ylabel="deviation, nats per dimension", yscale="log")
        axis.legend(fontsize=7)
        canvas.savefig(path, dpi=DPI)

    caption = (
        f"How much a term of the bound varies over {half} images, each twice, and draws of the "
        "noise: as a divergence (DDPM Eq. 5), and as a step and its way back. Both sum to the same "
        "mean. The sum along one path is another matter: there it varies, from path to path of an "
        f"image, by {sums[0]:.2g} nats per dimension as divergences and by {sums[1]:.2g} as steps "
        "and their ways back."
    )
    arrays = {"timesteps": times, "divergence": deviations[0], "consistency": deviations[1]}
    arrays |= {"sums": np.array(sums)}
    return Figure("Two forms of the bound", caption, arrays, draw)
