"""Figures of what is known when: quality along the reverse process, and decoding in progress."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion import random
from diffusion.spacings import uniform
from experiments import console, devices
from experiments.drawing import steps_taken
from experiments.features import scores
from experiments.features.references import make_judge
from experiments.figures.figure import DPI, Context, Figure, blank, grid, real_images
from experiments.methods.method import chain_of
from experiments.metrics import bound

RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)  # bits per dimension


def quality(context: Context) -> Figure:
    """Distance and score of the estimate of x_0, and its distance to the sample (Figure 10)."""
    experiment, count = context.experiment, context.config.num_samples
    steps = steps_taken(experiment, experiment.config.sample.num_steps)
    times = uniform(steps, min(11, steps))[::-1]
    drawn = context.samples(count, record=tuple(int(t) for t in times))
    progress = drawn.progress.astype(np.float64)
    rmse = np.sqrt(((progress - progress[-1]) ** 2).mean(axis=(2, 3, 4))).mean(axis=1)
    series = {"RMSE to the sample (0 to 255)": rmse}
    try:
        judge = make_judge(experiment.dataset, experiment.config.evaluate, context.mesh, drop=1)
    except (ValueError, FileNotFoundError) as error:
        console.log(f"WARNING   quality without features: {error}")
    else:
        found = [judge.features(pictures, context.mesh) for pictures in drawn.progress]
        quantity = judge.extractor.quantity
        series |= {
            quantity("fid_train"): np.array([judge.distance(f.features) for f in found]),
            quantity("is"): np.array([scores.inception_score(f.logits, 1).mean for f in found]),
        }

    def draw(path: Path) -> None:
        canvas = blank(figsize=(4 * len(series), 3.2))
        axes = canvas.subplots(1, len(series), squeeze=False)[0]
        for axis, (name, values) in zip(axes, series.items(), strict=True):
            axis.plot(steps - times, values, marker="o", markersize=3, color="black", linewidth=1.2)
            axis.set(xlabel="steps of the reverse process", xlim=(0, None), ylim=(0, None))
            axis.set_title(name, fontsize="small")
            axis.grid(alpha=0.3)
        canvas.savefig(path, dpi=DPI)

    caption = (
        f"Quality along the reverse process (DDPM Figure 10) of {count} estimates of x_0: how far "
        "they still are from the samples that they end in, and, where features are at hand, their "
        "distance to the training images and their score. Few samples make every distance larger."
    )
    named = {name.split(" ")[0]: values for name, values in series.items()}
    return Figure("Quality along the way", caption, {"steps": steps - times} | named, draw)


def decoding(context: Context) -> Figure:
    """What a receiver sees of an image when so many bits have come (DDPM section 4.3)."""
    experiment = context.experiment
    chain = chain_of(experiment.method, "The figure decoding")
    records = real_images(context, context.config.rows)
    rate = _rates(context, records)
    mean_rate = rate.mean(axis=1)
    chosen = [r for r in RATES if r <= mean_rate[0]]
    times = sorted({0, *(int(np.argmax(mean_rate <= r)) for r in chosen)}, reverse=True)
    x_0 = context.encode(records["image"])
    indices = jnp.arange(len(x_0))
    keys = random.per_index(random.stream(context.seed, "figures decoding"), indices)
    estimate = devices.jit(
        lambda params, x, t, labels: chain.denoise(params, x, t, **chain.condition(labels)).x_0,
        precision=devices.REPORTED,
    )
    tables, columns, errors = chain.process.schedule, [], []
    for t in times:
        eps = random.normal(keys, t, x_0.shape[1:])
        x_t = tables.signal[t] * x_0 + tables.noise[t] * eps
        found = np.asarray(estimate(context.params, x_t, jnp.asarray(t), records["label"]))
        columns.append(context.decode(found))
        errors.append(np.sqrt(np.mean((127.5 * (found - np.asarray(x_0))) ** 2)))
    pictures = np.stack([*columns, records["image"]], axis=1)
    rates = [float(mean_rate[t]) for t in times]
    words = [*(f"{r:.2g}\n{e:.0f}" for r, e in zip(rates, errors, strict=True)), "image"]
    caption = (
        "Decoding in progress (DDPM section 4.3): the receiver's estimate of real images when the "
        "mean of so many bits per dimension has been sent (above each column, over the RMSE from 0 "
        "to 255); the rest, to the image, is the code of L_0. The first bits buy what an image is "
        "of, and most of them what cannot be seen."
    )
    arrays = {
        "pictures": pictures,
        "timesteps": np.array(times),
        "bits_per_dim": np.array(rates),
        "rmse": np.array(errors),
    }
    return Figure("Decoding in progress", caption, arrays, grid(pictures, columns=words))


def _rates(context: Context, records: dict[str, np.ndarray]) -> np.ndarray:
    """f64[T, N]: bits per dimension of each image sent when the receiver holds x_t (Alg. 4)."""
    chain = chain_of(context.experiment.method, "The figure decoding")
    count, num_timesteps = len(records["image"]), chain.process.schedule.num_timesteps
    size = devices.round_up(count, context.mesh)
    padded = {name: np.resize(x, (size, *x.shape[1:])) for name, x in records.items()}
    by_example = devices.sharded(context.mesh)
    batch = devices.put_global(padded, by_example)
    indices = devices.put_global(np.arange(size, dtype=np.int32), by_example)
    terms_fn = bound.make_terms_fn(context.experiment, context.mesh, chain.denoise)
    per_call = 100 * context.experiment.config.evaluate.timesteps_at_once
    terms: list[np.ndarray] = []
    prior = np.zeros(size)
    for first in console.track(range(0, num_timesteps, per_call), "timesteps"):
        t = np.minimum(np.arange(first, first + per_call), num_timesteps - 1).astype(np.int32)
        rows = np.broadcast_to(t[:, None], (per_call, size)).copy()
        rows = devices.put_global(rows, devices.sharded(context.mesh, axis=1))
        prior, found = devices.fetch(terms_fn(context.params, batch, indices, rows, jnp.int32(0)))
        terms += list(np.asarray(found.nats, np.float64)[: num_timesteps - first])
    sent = np.stack(terms)[:, :count] / bound.BIT
    later = np.cumsum(sent[::-1], axis=0)[::-1]
    return prior[:count] / bound.BIT + np.concatenate([later[1:], np.zeros((1, count))])
