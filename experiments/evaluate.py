"""The variational bound on held-out data, beside baselines that it must beat."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import likelihood, random
from diffusion.structs import Gaussian
from experiments import data, devices, images, logs, runs
from experiments.build import Experiment
from experiments.sample import load_ema

BoundFn = Callable[..., likelihood.Bound]


class Totals(NamedTuple):
    """The bound of every image and of every timestep, in bits per dimension, float64."""

    prior: np.ndarray  # [N], L_T
    divergence: np.ndarray  # [N], the sum of L_1 .. L_{T-1}
    decoder: np.ndarray  # [N], L_0
    terms: np.ndarray  # [T], means over images
    x_0_mse: np.ndarray  # [T], means over images

    def summary(self) -> dict[str, Any]:
        """Means over images, and the standard error of the total."""
        total = self.prior + self.divergence + self.decoder
        return {
            "bits_per_dim": float(total.mean()),
            "standard_error": standard_error(total),
            "prior": float(self.prior.mean()),
            "kl": float(self.divergence.mean()),
            "decoder": float(self.decoder.mean()),
        }


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of independent values; None for a single one."""
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None


def make_bound_fn(experiment: Experiment, mesh: Any, denoise: Callable[..., Any]) -> BoundFn:
    """(params, batch, indices i32[B]) -> Bound in nats per dimension; compiled, B over devices.

    Image i's noise is a function of (seed, i, t).
    """
    config = experiment.config

    def bound(params: Any, batch: dict[str, jax.Array], indices: jax.Array) -> likelihood.Bound:
        keys = random.per_index(random.stream(config.seed, "evaluate"), indices)
        inputs = experiment.labels(batch["label"])
        return likelihood.variational_bound(
            experiment.model.schedule,
            lambda x_t, t: denoise(params, x_t, t, **inputs),
            images.to_model(batch["image"]),
            keys,
            decoder=experiment.decoder,
        )

    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh)
    return jax.jit(
        bound, in_shardings=(everywhere, by_example, by_example), out_shardings=everywhere
    )


def padded_batches(
    source: data.Source, num_images: int, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, int]]:
    """(batch, indices, how many of them count): the last one repeats its last image to be full."""
    for first in range(0, num_images, batch_size):
        stop = min(first + batch_size, num_images)
        batch = data.read(source, first, stop)
        missing = batch_size - (stop - first)
        batch = {k: np.concatenate([v, v[-1:].repeat(missing, 0)]) for k, v in batch.items()}
        yield batch, np.arange(first, first + batch_size, dtype=np.int32), stop - first


def evaluate_bound(
    bound_fn: BoundFn, params: Any, source: data.Source, num_images: int, batch_size: int, mesh: Any
) -> Totals:
    """The bound over the first `num_images` of `source`; memory for T numbers per image."""
    sharding = devices.sharded(mesh)
    priors, divergences, decoders, terms, errors = [], [], [], 0.0, 0.0
    for batch, indices, count in padded_batches(source, num_images, batch_size):
        arguments = devices.put_global((batch, indices), sharding)
        result = devices.fetch(bound_fn(params, *arguments))
        prior, term, error = (np.asarray(x, np.float64)[..., :count] for x in result)
        priors.append(prior)
        decoders.append(term[0])
        divergences.append(term[1:].sum(axis=0))
        terms += term.sum(axis=1)
        errors += error.sum(axis=1)
    bit = np.log(2.0)
    return Totals(
        prior=np.concatenate(priors) / bit,
        divergence=np.concatenate(divergences) / bit,
        decoder=np.concatenate(decoders) / bit,
        terms=np.asarray(terms / num_images / bit),
        x_0_mse=np.asarray(errors / num_images),
    )


def pixel_gaussian(train: data.Source, test: data.Source, num_images: int) -> np.ndarray:
    """bits/dim f64[N] of test images under one Gaussian per pixel and channel, fitted to `train`.

    The simplest density model of the same data: discretized to 256 levels like the decoder of
    DDPM Eq. 13, with one level's variance added so that constant pixels stay finite. The fit reads
    every image of a small set and 10,000 evenly spaced ones of a large one.
    """
    first = second = 0.0
    chosen = np.linspace(0, len(train) - 1, min(len(train), 10_000)).round().astype(int)
    for part in np.array_split(chosen, -(-chosen.size // 500)):
        x = data.gather(train, part.tolist())["image"] / 127.5 - 1.0
        first, second = first + x.sum(axis=0), second + np.square(x).sum(axis=0)
    mean = first / chosen.size
    variance = second / chosen.size - np.square(mean) + (2.0 / 255.0) ** 2
    gaussian = Gaussian(jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(variance, jnp.float32)))
    bits = []
    for start in range(0, num_images, 500):
        x_0 = data.read(test, start, min(start + 500, num_images))["image"]
        nats = -likelihood.exact_decoder(images.to_model(jnp.asarray(x_0)), gaussian)
        bits.append(likelihood.to_bits_per_dim(likelihood.mean_per_example(nats)))
    return np.concatenate([np.asarray(part, np.float64) for part in bits])


def write_terms(path: Path, totals: Totals) -> None:
    """The bound's terms by timestep as CSV: bits per dimension, and RMSE of x_0 on [0, 255]."""
    rows = zip(totals.terms, 127.5 * np.sqrt(totals.x_0_mse), strict=True)
    lines = [f"{t},{term:.8g},{rmse:.8g}\n" for t, (term, rmse) in enumerate(rows)]
    path.write_text("t,bits_per_dim,x_0_rmse_255\n" + "".join(lines))


def check(experiment: Experiment) -> None:
    """Refuses a config that `evaluate` would fail on, before anything is computed.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: if the data set is missing.
    """
    config = experiment.config.evaluate
    if config.batch_size < 1:
        raise ValueError(f"config.evaluate.batch_size = {config.batch_size} must be at least 1.")
    source = experiment.dataset.open(config.split)
    if not 0 <= config.num_images <= len(source):
        raise ValueError(
            f"config.evaluate.num_images = {config.num_images}, but the {config.split} split of "
            f"{experiment.dataset.name!r} has {len(source)} images. Choose 1 to {len(source)}, or "
            "0 for all."
        )


def evaluate(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint's EMA parameters on config.evaluate.split.

    Writes bound.csv and the section "evaluate" of results.json, and returns the section.
    """
    config = experiment.config.evaluate
    mesh = devices.make_mesh()
    batch_size = devices.round_up(config.batch_size, mesh)
    source = experiment.dataset.open(config.split)
    num_images = config.num_images or len(source)
    step, params = load_ema(experiment, workdir, mesh)

    def run(denoise: Callable[..., Any], params: Any) -> Totals:
        bound_fn = make_bound_fn(experiment, mesh, denoise)
        return evaluate_bound(bound_fn, params, source, num_images, batch_size, mesh)

    begin = time.perf_counter()
    totals = run(experiment.denoise, params)
    seconds = time.perf_counter() - begin
    untrained = run(experiment.untrained_denoise, {})
    gaussian = pixel_gaussian(experiment.dataset.open("train"), source, num_images)
    results = totals.summary() | {
        "checkpoint_step": step,
        "weights": "ema",
        "split": config.split,
        "num_images": num_images,
        "split_images": len(source),
        "decoder_form": config.decoder,
        "clip_denoised": config.clip_denoised,
        "seconds": round(seconds, 2),
        "baselines": {
            "untrained_network": untrained.summary(),
            "gaussian_per_pixel": {
                "bits_per_dim": float(gaussian.mean()),
                "standard_error": standard_error(gaussian),
            },
        },
    }
    if devices.is_main_process():
        write_terms(workdir / "bound.csv", totals)
        runs.write_results(workdir, "evaluate", results, experiment.config)
    report(results)
    return results


def report(results: dict[str, Any]) -> None:
    """Prints the numbers of `evaluate`, model first, baselines below it."""

    def line(name: str, numbers: dict[str, Any], detail: str = "") -> None:
        error = numbers["standard_error"]
        spread = "" if error is None else f" +- {error:.3f}"
        logs.say(f"  {name:<22} {numbers['bits_per_dim']:7.3f}{spread}{detail}")

    some = "" if results["num_images"] == results["split_images"] else "first "
    logs.say(
        f"bits/dim  of {some}{results['num_images']} {results['split']} images "
        f"({results['seconds']:.0f} s), +- standard error over images"
    )
    parts = ", ".join(f"{name} {results[name]:.3f}" for name in ("prior", "kl", "decoder"))
    line("this model (bound)", results, f"  = {parts}")
    line("untrained network", results["baselines"]["untrained_network"])
    line("Gaussian per pixel", results["baselines"]["gaussian_per_pixel"])
