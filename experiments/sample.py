"""Samples from a trained model: a PNG grid, an npz of uint8, and the progressive generation."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion import random
from diffusion.spacings import uniform
from experiments import console, devices, images
from experiments.build import Experiment
from experiments.files.atomic import digest, read_json, write_json
from experiments.methods.method import Method
from experiments.workdir.checkpoint import Loaded, checksums
from experiments.workdir.results import read_results, write_results
from experiments.workdir.sinks import show

SampleFn = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
ABOUT = "samples.json"  # what samples in a folder of their own are of
PARTS = 25  # of a drawing, between which it can say how far it is


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


def parts_of(num_steps: int) -> list[np.ndarray]:
    """The falling steps in at most PARTS parts, each of several steps, of one length if possible.

    Every length is compiled, and a loop of a single step would be compiled to other roundings.
    """
    falling = np.arange(num_steps, dtype=np.int32)[::-1]
    most = max(1, min(PARTS, num_steps // 2))
    even = [count for count in range(1, most + 1) if num_steps % count == 0]
    return np.array_split(falling, even[-1] if 2 * even[-1] >= most else most)


def compile_sampling(
    experiment: Experiment,
    mesh: Mesh,
    *,
    num_steps: int,
    record: tuple[int, ...] = (),
    quantize: str = "round",
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(params, indices i32[B], seed u32[], labels i32[K]) -> the fields of `Drawn`.

    On the devices, B cut over them. Sample i is a function of (seed, i) and labels[i mod K]. With
    the keyword `each`, that is called when each of the parts of `parts_of` is done, with the number
    of its steps; else nothing is waited for.

    Args:
        num_steps: of sampling; 0 is the method's own number, every timestep of a chain.
        record: steps, counted down to 0, whose estimates of x_0 are returned.
        quantize: a key of images.QUANTIZE; uint8 but for "none".
    """
    sampling, decode = experiment.method.sampling(num_steps, record), experiment.encoder.decode
    to_pixels = functools.partial(
        images.QUANTIZE[quantize], num_levels=experiment.dataset.num_levels
    )

    def pixels(x: jax.Array) -> jax.Array:
        return to_pixels(decode(jnp.where(jnp.isnan(x), 0.0, x)))

    def begin(params: Any, indices: jax.Array, seed: jax.Array, labels: jax.Array) -> Any:
        keys = random.per_index(random.stream(seed, "sample"), indices)
        wanted = labels[indices % len(labels)]
        return keys, wanted, sampling.begin(params, keys, wanted)

    def end(state: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        drawn = sampling.end(state)
        axes = tuple(range(1, drawn.x_0.ndim))
        finite = jnp.isfinite(drawn.x_0).all(axes)
        finite &= jnp.isfinite(drawn.progress).all((0, *(axis + 1 for axis in axes)))
        progress = pixels(drawn.progress.reshape(-1, *drawn.x_0.shape[1:]))
        shape = (len(record), len(drawn.x_0), *progress.shape[1:])
        return pixels(drawn.x_0), progress.reshape(shape), finite

    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh)
    compiled = functools.partial(devices.jit, precision=experiment.config.precision)
    first = compiled(
        begin,
        in_shardings=(everywhere, by_example, everywhere, everywhere),
        out_shardings=by_example,
    )
    advance = compiled(
        sampling.advance,
        in_shardings=(everywhere, by_example, by_example, by_example, everywhere),
        out_shardings=by_example,
        donate_argnums=3,
    )
    last = compiled(end, in_shardings=(by_example,), out_shardings=everywhere)

    def sample(
        params: Any, *inputs: Any, each: Callable[[int], None] | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys, wanted, state = first(params, *inputs)
        for steps in parts_of(sampling.num_steps):
            state = advance(params, keys, wanted, state, steps)
            if each is not None:
                jax.block_until_ready(state)
                each(len(steps))
        return last(state)

    return sample


def make_sample_fn(experiment: Experiment, mesh: Mesh, **options: Any) -> SampleFn:
    """`compile_sampling` for the seed and the labels of the config: (params, indices i32[B])."""
    compiled = compile_sampling(experiment, mesh, **options)
    labels = requested_labels(experiment.config.sample.labels, experiment.method)
    seed = np.uint32(experiment.config.seed)
    return lambda params, indices, **each: compiled(params, indices, seed, labels, **each)


def draw(
    sample_fn: SampleFn,
    params: Any,
    start: int,
    stop: int,
    batch_size: int,
    mesh: Mesh,
    **each: Any,
) -> Drawn:
    """Samples start .. stop - 1 with their progress, in batches of one size, on the host.

    **each: as for `compile_sampling`.
    """
    parts = []
    for first in range(start, stop, batch_size):
        indices = np.arange(first, first + batch_size, dtype=np.int32)
        indices = devices.put_global(indices, devices.sharded(mesh))
        parts.append(devices.fetch(sample_fn(params, indices, **each)))
    samples, progress, finite = zip(*parts, strict=True)
    count = stop - start
    return Drawn(
        np.concatenate(samples)[:count],
        np.concatenate(progress, axis=1)[:, :count],
        np.concatenate(finite)[:count],
    )


def facts_of(experiment: Experiment, loaded: Loaded) -> dict[str, Any]:
    """All that samples of the config depend on, and how many there are to be."""
    config = experiment.config.sample
    return {
        "checkpoint_step": loaded.step,
        **loaded.origin._asdict(),
        "checkpoint": experiment.config.checkpoint,
        **experiment.method.protocol,
        "num_steps": config.num_steps or experiment.method.num_steps,
        "labels": config.labels,
        "precision": experiment.config.precision,
        "num_images": config.num_images,
        "quantize": "round",
    }


def folder_apart(experiment: Experiment, workdir: Path, loaded: Loaded) -> Path:
    """A folder named by what the samples are of, which holds nothing else: for --mode=sample.

    Like samples/step4000_seed0_ancestral1000; a set of other samples under the same name, such as
    of another training in the same working directory, stays, and the new one gets a number.
    """
    facts = facts_of(experiment, loaded)
    labels = "" if facts["labels"] == "all" else f"_labels{facts['labels'].replace(' ', '')}"
    name = f"step{loaded.step}_seed{experiment.config.seed}_{facts['sampler']['name']}"
    name += f"{facts['num_steps']}{labels}{'_best' if facts['checkpoint'] == 'best' else ''}"
    about, folder, number = _about(experiment, loaded), workdir / "samples" / name, 1
    while not _replaceable(folder, about):
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def _about(experiment: Experiment, loaded: Loaded) -> dict[str, Any]:
    """What tells one set of samples from another."""
    seed, weights = experiment.config.seed, digest(checksums(loaded.params))
    return facts_of(experiment, loaded) | {"seed": seed, "parameters": weights}


def _replaceable(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a folder holds no samples, or the first ones of those that are to be drawn."""
    if not folder.exists():
        return True
    path = folder / ABOUT
    before = read_json(path) if path.is_file() else {}
    fewer = before.get("num_images", about["num_images"] + 1) <= about["num_images"]
    return fewer and before | {"num_images": 0} == about | {"num_images": 0}


def sample(
    experiment: Experiment, workdir: Path, loaded: Loaded, out: Path | None = None
) -> dict[str, Any]:
    """Draws config.sample.num_images samples from what was loaded, into a folder.

    Writes samples.npz (arr_0, uint8[N, H, W, C]), samples.png and progress.png (estimates of x_0
    along the chain, DDPM Figure 6).

    Args:
        experiment: whose config says how.
        workdir: of the run.
        loaded: the parameters.
        out: where to; None is `workdir`/samples, the training's own set, which replaces another,
            and then the section "sample" of results.json tells of it, as it does of a first set.

    Raises:
        ValueError: if `out` holds other samples.
    """
    folder, about = out or workdir / "samples", _about(experiment, loaded)
    if out is not None and not _replaceable(out, about):
        raise ValueError(
            f"{out} holds something else than the first of these samples. Name another folder, or "
            "move it away."
        )
    if (folder / ABOUT).is_file() and read_json(folder / ABOUT) == about:
        console.log(f"sampled   nothing: these samples are in {folder} already")
        return about if out is not None else read_results(workdir).get("sample", about)
    config = experiment.config.sample
    mesh = devices.make_mesh()
    batch_size = devices.round_up(min(config.batch_size, config.num_images), mesh)
    num_steps = config.num_steps or experiment.method.num_steps
    columns = min(config.progress_columns, num_steps)
    record = tuple(int(t) for t in uniform(num_steps, columns)[::-1])
    rows = min(config.progress_images, config.num_images)
    batches = -(-config.num_images // batch_size)

    console.doing("sampling")
    begin = time.perf_counter()
    plain = make_sample_fn(experiment, mesh, num_steps=config.num_steps)
    recording = make_sample_fn(experiment, mesh, num_steps=config.num_steps, record=record)
    with console.progress("sampling steps", (batches + 1) * num_steps) as each:
        drawn = draw(plain, loaded.params, 0, config.num_images, batch_size, mesh, each=each)
        seconds = time.perf_counter() - begin
        recorded = draw(
            recording, loaded.params, 0, rows, devices.round_up(rows, mesh), mesh, each=each
        )
    names = ("samples.npz", "samples.png", "progress.png")
    results = facts_of(experiment, loaded) | {
        "not_finite": drawn.not_finite,
        "seconds": round(seconds, 2),
        "files": [os.path.relpath(folder / name, workdir) for name in names],
    }
    if devices.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "samples.npz", arr_0=drawn.samples)
        first = images.grid(drawn.samples[:256])
        images.save(folder / "samples.png", first)
        show(workdir, experiment.config, loaded.step, {"eval/samples": first})
        by_row = recorded.progress.swapaxes(0, 1).reshape(-1, *drawn.samples.shape[1:])
        images.save(folder / "progress.png", images.grid(by_row, columns))
        if out is None or "sample" not in read_results(workdir):
            write_results(workdir, "sample", results, experiment.config)
        write_json(folder / ABOUT, about)
    drawn.warn()
    console.log(
        f"sampled   {config.num_images} images in {seconds:.1f} s: {folder / 'samples.png'}"
    )
    return results
