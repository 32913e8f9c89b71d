"""Figures that go back to x_0 from noised images: completions, interpolations, inpainting."""

import jax.numpy as jnp
import numpy as np

from experiments import console
from experiments.data.dataset import gather
from experiments.figures.figure import Context, Figure, grid, real_images
from experiments.figures.latents import Latents, make_latents, noise

# Of the way to the middle: t = 1000, 750, 500, 250 of DDPM Figure 7 and 1000, 875, ... of Figure 9,
# where the middle is 500.
SHARES = (1.5, 1.0, 0.5)
BY_TIME = (1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25)
LAMBDAS = 9  # columns of an interpolation, both ends included


def shared_latents(context: Context) -> Figure:
    """Samples that share x_t share what x_t tells (DDPM Figure 7)."""
    latents = make_latents(context, "shared_latents")
    count = context.config.columns
    indices = jnp.arange(1, count + 1)
    label = jnp.zeros(count, jnp.int32)
    x_0 = _one_sample(context, latents)
    eps, middle = noise(context, "shared", 1), latents.middle(x_0.shape[1])
    rows, times = [], []
    shares = (1.0, *(middle * share for share in SHARES))
    for share in console.track(shares, "completions"):
        t = latents.time_of(share)
        x_t = latents.noised(x_0, t, eps)
        decoded = latents.decode(jnp.repeat(x_t, count, axis=0), t, label, indices)
        rows.append(np.concatenate([context.decode(x_t), context.decode(decoded)]))
        times.append(t)
    pictures = np.stack(rows)
    caption = (
        "Completions that share x_t (DDPM Figure 7): on the left x_t, one image noised to each t "
        "by the same noise, then samples of p(x_0 | x_t), each with noise of its own "
        f"(ancestral, {latents.schedule.num_timesteps} steps in all). At the last timestep they "
        "share nothing; the smaller t is, the more they agree, first in the coarse and then in the "
        "fine."
    )
    arrays = {"pictures": pictures, "timesteps": np.array(times)}
    words = [f"t = {t + 1}" for t in times]
    columns = ["x_t", *[""] * count]
    return Figure("Completions that share x_t", caption, arrays, grid(pictures, words, columns))


def _one_sample(context: Context, latents: Latents) -> jnp.ndarray:
    """x_0 of one sample of class 0, as what is modelled."""
    t = latents.schedule.num_timesteps - 1
    x_T, label = noise(context, "one", 1), jnp.zeros(1, jnp.int32)
    return latents.decode(x_T, t, label, jnp.zeros(1, jnp.int32))


def _pairs(context: Context, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint8 [N, ...], [N, ...], labels i32[N]) of pairs of real images, each of one class."""
    source = context.real
    records = gather(source, range(min(len(source), 1000)))
    method = context.experiment.method
    told = method.num_classes or method.tokenizer
    labels = records["label"] if told else 0 * records["label"]
    first, second, chosen = [], [], []
    for pair in range(count):
        kinds = np.unique(labels)
        of_kind = np.flatnonzero(labels == kinds[pair % len(kinds)])
        turn = pair // len(kinds)
        i, j = of_kind[(2 * turn) % len(of_kind)], of_kind[(2 * turn + 1) % len(of_kind)]
        first.append(records["image"][i])
        second.append(records["image"][j])
        chosen.append(labels[i])
    return np.stack(first), np.stack(second), np.array(chosen, np.int32)


def between(
    context: Context, latents: Latents, pair: tuple[np.ndarray, np.ndarray, int], t: int, row: int
) -> np.ndarray:
    """uint8[LAMBDAS, ...]: the decoded mixtures of two images' x_t, the same noise in both.

    x_t = sqrt(alpha_bar_t) ((1 - lambda) x_0 + lambda x_0') + sqrt(1 - alpha_bar_t) eps, which is
    the mixture of the two latents as they share eps. The noise of the way back is the same for all
    lambda, so that the ends are the two images' own reconstructions (DDPM section 4.4).
    """
    ends = [context.encode(image[None]) for image in pair[:2]]
    eps = noise(context, "interpolation", 1)
    x_t = [latents.noised(end, t, eps) for end in ends]
    lambdas = jnp.linspace(0.0, 1.0, LAMBDAS).reshape(-1, *[1] * (x_t[0].ndim - 1))
    mixed = jnp.where(lambdas == 1.0, x_t[1], (1.0 - lambdas) * x_t[0] + lambdas * x_t[1])
    label = jnp.full(LAMBDAS, pair[2], jnp.int32)
    return context.decode(latents.decode(mixed, t, label, jnp.full(LAMBDAS, 1000 + row)))


def _mixtures(numbers: int) -> list[str]:
    return [f"λ = {value:.2g}" for value in np.linspace(0.0, 1.0, numbers)]


def interpolation(context: Context) -> Figure:
    """Interpolations of several pairs of real images at the middle timestep (DDPM Figure 8)."""
    latents = make_latents(context, "interpolation")
    first, second, labels = _pairs(context, context.config.rows)
    t = latents.time_of(latents.middle(context.experiment.encoder.shape[0]))
    pairs = list(zip(first, second, labels, strict=True))
    rows = [
        np.concatenate([a[None], between(context, latents, (a, b, label), t, row), b[None]])
        for row, (a, b, label) in enumerate(console.track(pairs, "pairs"))
    ]
    caption = (
        f"Interpolations (DDPM Figure 8) at t = {t + 1} of {latents.schedule.num_timesteps}: the "
        "outer columns are real images that were not trained on where any are held out, the next "
        "ones their reconstructions, and between them mixtures of the two x_t, with the same noise "
        "in both and on the way back."
    )
    columns = ["source", *_mixtures(LAMBDAS), "target"]
    pictures = np.stack(rows)
    arrays = {"pictures": pictures, "timestep": np.array(t)}
    return Figure("Interpolations", caption, arrays, grid(pictures, columns=columns))


def interpolation_by_time(context: Context) -> Figure:
    """Interpolations of one pair from coarse to fine (DDPM Figure 9)."""
    latents = make_latents(context, "interpolation_by_time")
    first, second, labels = _pairs(context, 1)
    pair = first[0], second[0], int(labels[0])
    middle = latents.middle(context.experiment.encoder.shape[0])
    times = [latents.time_of(share) for share in (1.0, *(middle * share for share in BY_TIME))]
    rows = [between(context, latents, pair, t, 0) for t in console.track(times, "timesteps")]
    pixels = np.linspace(0.0, 1.0, LAMBDAS)[:, None, None, None]
    rows.append(np.round((1 - pixels) * first[0] + pixels * second[0]).astype(np.uint8))
    sides = [np.stack([image] * len(rows))[:, None] for image in (first[0], second[0])]
    pictures = np.concatenate([sides[0], np.stack(rows), sides[1]], axis=1)
    caption = (
        "Coarse-to-fine interpolation (DDPM Figure 9) of one pair of real images, from all of the "
        "chain in the top row to none of it, the mixture of the pixels, in the last. The larger t "
        "is, the more is made up on the way back, and the less of either image is left."
    )
    words = [*(f"t = {t + 1}" for t in times), "pixels"]
    columns = ["source", *_mixtures(LAMBDAS), "target"]
    arrays = {"pictures": pictures, "timesteps": np.array(times)}
    return Figure("Interpolation by t", caption, arrays, grid(pictures, words, columns))


def inpainting(context: Context) -> Figure:
    """Real images of which a half or the middle is hidden, completed three times (RePaint)."""
    latents = make_latents(context, "inpainting")
    count = context.config.rows
    records = real_images(context, count)
    known = context.encode(records["image"])
    count, side = len(known), known.shape[1:]
    masks = np.ones((count, *side), np.float32)
    for row in range(count):
        height, width = side[:2]
        if row % 3 == 0:
            masks[row, height // 2 :] = 0.0  # the lower half is hidden
        elif row % 3 == 1:
            masks[row, :, width // 2 :] = 0.0
        else:
            masks[row, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 0.0
    times = [
        latents.complete(known, masks, records["label"], jnp.arange(count) + 5000 + 1000 * k)
        for k in console.track(range(3), "completions")
    ]
    hidden = context.decode(np.where(masks > 0, known, 0.0))
    columns = [records["image"], hidden, *(context.decode(x) for x in times)]
    pictures = np.stack(columns, axis=1)
    caption = (
        "Inpainting (RePaint, ancestral, resampling "
        f"{context.config.resamplings} times): real images, what is told of them, and three "
        "completions. What is told comes back exactly."
    )
    words = ["image", "known", "1", "2", "3"]
    arrays = {"pictures": pictures, "masks": masks}
    return Figure("Inpainting", caption, arrays, grid(pictures, columns=words))
