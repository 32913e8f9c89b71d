"""Figures of samples: grids, classes, the way there, and their nearest training images."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion import random
from diffusion.spacings import uniform
from experiments import console, devices, images
from experiments.data.dataset import gather
from experiments.drawing import steps_taken
from experiments.features.extractors import features_of, load_extractor, make_feature_fn
from experiments.figures.figure import Context, Figure, grid

CHUNK = 1024  # training images compared at a time
NEIGHBOURS = 4
FRAMES = 40


def walked(context: Context) -> str:
    """How the samples of a figure were drawn, for its caption."""
    protocol, config = context.experiment.method.protocol, context.experiment.config.sample
    name = protocol.get("sampler", {"name": "its own sampler"})["name"]
    scale = protocol.get("guidance", {"scale": 1.0})["scale"]
    steps = steps_taken(context.experiment, config.num_steps)
    guided = "" if scale == 1.0 else f", guidance {scale:g}"
    return f"{name}, {steps} steps{guided}, seed {context.seed}"


def sample_grid(context: Context) -> Figure:
    """The first samples of the seed, none left out."""
    count = context.config.columns * context.config.columns
    drawn = context.samples(count)
    shape = (context.config.columns, context.config.columns, *drawn.samples.shape[1:])
    caption = f"The first {count} samples of the seed, none left out ({walked(context)})."
    arrays = {"samples": drawn.samples, "evaluations": drawn.evaluations}
    return Figure("Samples", caption, arrays, grid(drawn.samples.reshape(shape)))


def classes(context: Context) -> Figure:
    """A row of samples for each class; needs a class-conditional model.

    Raises:
        ValueError: where the model heeds no labels.
    """
    count = context.experiment.method.num_classes
    if not count:
        raise ValueError("the figure `classes` needs a class-conditional model.")
    columns = context.config.columns
    labels = np.repeat(np.arange(count, dtype=np.int32), columns)
    drawn = context.samples(count * columns, labels=labels)
    rows = drawn.samples.reshape(count, columns, *drawn.samples.shape[1:])
    caption = f"A row for each class, the first samples asked for it ({walked(context)})."
    names = context.experiment.dataset.classes or [str(i) for i in range(count)]
    arrays = {"samples": drawn.samples, "labels": labels, "names": np.array(names)}
    return Figure("Classes", caption, arrays, grid(rows, names))


def progressive(context: Context) -> Figure:
    """Estimates of x_0 along the reverse process (DDPM Figure 6)."""
    steps = steps_taken(context.experiment, context.experiment.config.sample.num_steps)
    times = uniform(steps, min(context.config.columns, steps))[::-1]
    drawn = context.samples(context.config.rows, record=tuple(int(t) for t in times))
    caption = (
        "Progressive generation (DDPM Figure 6): each row is one sample, its estimate x̂_0 from "
        f"pure noise on the left to the last step on the right ({walked(context)}). Large-scale "
        "features appear first, details last."
    )
    rows = drawn.progress.swapaxes(0, 1)
    columns = [f"t = {t + 1}" for t in times]
    arrays = {"progress": rows, "timesteps": times}
    return Figure("Progressive generation", caption, arrays, grid(rows, columns=columns))


def reverse(context: Context) -> Figure:
    """The reverse process as a moving picture: x_t, from noise to samples."""
    experiment, method = context.experiment, context.experiment.method
    sampling = method.sampling(experiment.config.sample.num_steps, ())
    count = context.config.rows * context.config.rows
    indices = np.arange(count, dtype=np.int32)
    keys = random.per_index(random.stream(context.seed, "sample"), jnp.asarray(indices))
    every = context.labels()
    labels = every[indices % len(every)]
    compiled = functools.partial(devices.jit, precision=experiment.config.precision)
    begin, advance = compiled(sampling.begin), compiled(sampling.advance)
    state = begin(context.params, keys, labels)
    frames = [state.x_t] if hasattr(state, "x_t") else []
    falling = np.arange(sampling.num_steps, dtype=np.int32)[::-1]
    parts = np.array_split(falling, min(FRAMES, sampling.num_steps))
    for steps in console.track(parts, "frames"):
        state = advance(context.params, keys, labels, state, steps)
        frames.append(state.x_t if hasattr(state, "x_t") else sampling.end(state).x_0)
    pictures = context.decode(np.stack([np.asarray(frame) for frame in frames]))

    def draw(path: Path) -> None:
        tiled = [images.grid(frame) for frame in pictures]
        pages = [Image.fromarray(t[..., 0] if t.shape[-1] == 1 else t) for t in tiled]
        pages = [page.convert("RGB") for page in pages]
        times = [80] * (len(pages) - 1) + [2000]
        pages[0].save(
            path, save_all=True, append_images=pages[1:], duration=times, loop=0, lossless=True
        )

    caption = (
        f"The reverse process, x_T to x_0, of {count} samples in {len(frames)} frames "
        f"({walked(context)})."
    )
    arrays = {"frames": pictures}
    return Figure("The reverse process", caption, arrays, draw, ".webp")


def neighbours(context: Context) -> Figure:
    """The nearest training images of some samples, by pixels and by features."""
    experiment = context.experiment
    drawn = context.samples(context.config.rows).samples
    train, shape = experiment.dataset.open("train"), drawn.shape[1:]
    found = {"pixels": _nearest(context, drawn, lambda x: x.reshape(len(x), -1) / 255.0)}
    try:
        config = experiment.config.evaluate
        extractor = load_extractor(config.extractor, config.inception_weights, experiment.dataset)
    except (ValueError, FileNotFoundError) as error:
        console.log(f"WARNING   neighbours by pixels only: {error}")
        features = "no features"
    else:
        feature_fn = make_feature_fn(extractor, context.mesh)
        features, size = extractor.name, devices.round_up(256, context.mesh)

        def of(pictures: np.ndarray) -> np.ndarray:
            def read(start: int, stop: int) -> np.ndarray:
                return pictures[start:stop]

            return features_of(feature_fn, read, len(pictures), size, context.mesh).features

        found["features"] = _nearest(context, drawn, of)
    places = np.concatenate(list(found.values()), axis=1)
    near = gather(train, places.ravel().tolist())["image"].reshape(*places.shape, *shape)
    rows = np.concatenate([drawn[:, None], near], axis=1)
    columns = ["sample", *(f"{name} {k + 1}" for name in found for k in range(NEIGHBOURS))]
    caption = (
        f"Samples ({walked(context)}) and their {NEIGHBOURS} nearest images of all {len(train):,} "
        f"training images, by squared pixel distance and by features ({features}). A model that "
        "copies shows its samples again."
    )
    arrays = {"samples": drawn} | {f"train_indices_by_{name}": at for name, at in found.items()}
    return Figure("Nearest training images", caption, arrays, grid(rows, columns=columns))


def _nearest(context: Context, drawn: np.ndarray, features: object) -> np.ndarray:
    """i64[N, NEIGHBOURS]: places of the nearest training images under a map to features."""
    assert callable(features)
    train, mine = context.experiment.dataset.open("train"), features(drawn).astype(np.float64)
    every = []
    for first in console.track(range(0, len(train), CHUNK), "training images"):
        theirs = gather(train, range(first, min(first + CHUNK, len(train))))["image"]
        other = features(theirs).astype(np.float64)
        cross = mine @ other.T
        every.append((mine**2).sum(1)[:, None] - 2.0 * cross + (other**2).sum(1))
    return np.argsort(np.concatenate(every, axis=1), axis=1, kind="stable")[:, :NEIGHBOURS]
