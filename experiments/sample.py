"""Samples from a trained model: a PNG grid, an npz of uint8, and the progressive generation."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion import random
from diffusion.schedules import evenly_spaced
from experiments import console, devices, images
from experiments.build import Experiment
from experiments.methods.method import Method
from experiments.workdir.checkpoint import Loaded
from experiments.workdir.results import write_results

SampleFn = Callable[[Any, Any], tuple[jax.Array, jax.Array, jax.Array]]


class Drawn(NamedTuple):
    """Samples on the host, in 0..255.

    What is not finite is drawn grey where it is no number, and says so in `finite`.
    """

    samples: np.ndarray  # [B, H, W, C]
    progress: np.ndarray  # [K, B, H, W, C], estimates of x_0 on the way
    finite: np.ndarray  # bool[B], whether sample and progress were numbers throughout

    @property
    def not_finite(self) -> int:
        """How many are not."""
        return int((~self.finite).sum())

    def warn(self) -> None:
        """Says that there are some."""
        if self.not_finite:
            console.log(
                f"WARNING   {self.not_finite} of {len(self.finite)} samples are not finite; what "
                "is no number in them is drawn grey."
            )


def requested_labels(labels: str, method: Method) -> np.ndarray:
    """The classes that samples 0, 1, ... get, in turn: i32[K].

    Args:
        labels: of config.sample: "all", every class in turn; "none", no class in particular; or
            numbers of classes, separated by commas.

    Raises:
        ValueError: for anything else, a class that is not there, and any wish where the method
            heeds none.
    """
    count = method.num_classes
    if labels == "all":
        return np.arange(max(count, 1), dtype=np.int32)
    if not count:
        raise ValueError(
            f"config.sample.labels = {labels!r} asks for classes, and this model knows none: leave "
            "it 'all', or train with config.model.class_conditional = True."
        )
    if labels == "none":
        if method.null_class:
            return np.array([count], np.int32)
        raise ValueError(
            "config.sample.labels = 'none' needs a model that was also trained without labels "
            "(config.model.label_dropout above 0)."
        )
    words = [word.strip() for word in labels.strip("()[] ").rstrip(",").split(",")]
    if not all(word.isdecimal() and int(word) < count for word in words):
        raise ValueError(
            f"config.sample.labels = {labels!r} must be 'all', 'none', or classes from 0 to "
            f"{count - 1}, separated by commas."
        )
    return np.array([int(word) for word in words], np.int32)


def check(experiment: Experiment) -> None:
    """Refuses a config that `sample` would fail on; raises as `requested_labels` does."""
    requested_labels(experiment.config.sample.labels, experiment.method)


def compile_sampling(
    experiment: Experiment,
    mesh: Mesh,
    *,
    num_steps: int,
    record: tuple[int, ...] = (),
    quantize: str = "round",
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(params, indices i32[B], seed u32[], labels i32[K]) -> the fields of `Drawn`.

    On the devices, B cut over them. Sample i is a function of (seed, i) and labels[i mod K].

    Args:
        num_steps: of sampling; 0 is the method's own number, every timestep of a chain.
        record: steps, counted down to 0, whose estimates of x_0 are returned.
        quantize: a key of images.QUANTIZE; uint8 but for "none".
    """
    method, decode = experiment.method, experiment.encoder.decode
    to_pixels = functools.partial(
        images.QUANTIZE[quantize], num_levels=experiment.dataset.num_levels
    )

    def pixels(x: jax.Array) -> jax.Array:
        return to_pixels(decode(jnp.where(jnp.isnan(x), 0.0, x)))

    def sample(
        params: Any, indices: jax.Array, seed: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = random.per_index(random.stream(seed, "sample"), indices)
        wanted = labels[indices % len(labels)]
        drawn = method.sample(params, keys, wanted, steps=num_steps, record=record)
        axes = tuple(range(1, drawn.x_0.ndim))
        finite = jnp.isfinite(drawn.x_0).all(axes)
        finite &= jnp.isfinite(drawn.progress).all((0, *(axis + 1 for axis in axes)))
        progress = pixels(drawn.progress.reshape(-1, *drawn.x_0.shape[1:]))
        shape = (len(record), len(indices), *progress.shape[1:])
        return pixels(drawn.x_0), progress.reshape(shape), finite

    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh)
    return devices.jit(
        sample,
        precision=experiment.config.precision,
        in_shardings=(everywhere, by_example, everywhere, everywhere),
        out_shardings=everywhere,
    )


def make_sample_fn(experiment: Experiment, mesh: Mesh, **options: Any) -> SampleFn:
    """`compile_sampling` for the seed and the labels of the config: (params, indices i32[B])."""
    compiled = compile_sampling(experiment, mesh, **options)
    labels = requested_labels(experiment.config.sample.labels, experiment.method)
    seed = np.uint32(experiment.config.seed)
    return lambda params, indices: compiled(params, indices, seed, labels)


def draw(
    sample_fn: SampleFn, params: Any, start: int, stop: int, batch_size: int, mesh: Mesh
) -> Drawn:
    """Samples start .. stop - 1 with their progress, in batches of one size, on the host."""
    parts = []
    for first in range(start, stop, batch_size):
        indices = np.arange(first, first + batch_size, dtype=np.int32)
        indices = devices.put_global(indices, devices.sharded(mesh))
        parts.append(devices.fetch(sample_fn(params, indices)))
    samples, progress, finite = zip(*parts, strict=True)
    count = stop - start
    return Drawn(
        np.concatenate(samples)[:count],
        np.concatenate(progress, axis=1)[:, :count],
        np.concatenate(finite)[:count],
    )


def sample(experiment: Experiment, workdir: Path, loaded: Loaded) -> dict[str, Any]:
    """Draws config.sample.num_images samples from what was loaded into `workdir`/samples.

    Writes samples.npz (arr_0, uint8[N, H, W, C]), samples.png, progress.png (estimates of x_0 along
    the chain, DDPM Figure 6) and the section "sample" of results.json.
    """
    config = experiment.config.sample
    mesh = devices.make_mesh()
    batch_size = devices.round_up(config.batch_size, mesh)
    num_steps = config.num_steps or experiment.method.num_steps
    columns = min(config.progress_columns, num_steps)
    record = tuple(int(t) for t in evenly_spaced(num_steps, columns)[::-1])
    rows = min(config.progress_images, config.num_images)

    begin = time.perf_counter()
    plain = make_sample_fn(experiment, mesh, num_steps=config.num_steps)
    drawn = draw(plain, loaded.params, 0, config.num_images, batch_size, mesh)
    seconds = time.perf_counter() - begin
    recording = make_sample_fn(experiment, mesh, num_steps=config.num_steps, record=record)
    recorded = draw(recording, loaded.params, 0, rows, devices.round_up(rows, mesh), mesh)

    folder = workdir / "samples"
    results = {
        "checkpoint_step": loaded.step,
        **loaded.origin._asdict(),
        "checkpoint": experiment.config.checkpoint,
        **experiment.method.protocol,
        "num_steps": num_steps,
        "labels": config.labels,
        "precision": experiment.config.precision,
        "num_images": config.num_images,
        "not_finite": drawn.not_finite,
        "quantize": "round",
        "seconds": round(seconds, 2),
        "files": ["samples/samples.npz", "samples/samples.png", "samples/progress.png"],
    }
    if devices.is_main_process():
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / "samples.npz", arr_0=drawn.samples)
        images.save_grid(folder / "samples.png", drawn.samples[:256])
        by_row = recorded.progress.swapaxes(0, 1).reshape(-1, *drawn.samples.shape[1:])
        images.save_grid(folder / "progress.png", by_row, columns=columns)
        write_results(workdir, "sample", results, experiment.config)
    drawn.warn()
    console.log(
        f"sampled   {config.num_images} images in {seconds:.1f} s: {folder / 'samples.png'}"
    )
    return results
