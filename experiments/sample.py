"""Samples from a trained model: npz or PNG files, a grid, and the progressive generation."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from diffusion.spacings import uniform
from experiments import console, devices, images
from experiments.data.captions import shown
from experiments.drawing import (
    draw_indices,
    make_sample_fn,
    prompts_of,
    requested,
    sampling_protocol,
    steps_taken,
)
from experiments.experiment import Experiment
from experiments.files.atomic import digest, write_json
from experiments.sample_files import Rows, SampleFiles, set_of_run, written_indices
from experiments.workdir.checkpoint import crc32s
from experiments.workdir.origin import Loaded
from experiments.workdir.results import read_results, write_results
from experiments.workdir.sinks import show

SHOWN = 256  # samples in the grid
WIDEST = 16  # prompts that get a column of it each


class Place(NamedTuple):
    """Which samples, and where to.

    indices: of the samples; None is the first config.sample.num_images.
    out: a folder; None is WORKDIR/samples, the training's own set.
    """

    indices: Sequence[int] | None = None
    out: Path | None = None


OWN = Place()


def check(experiment: Experiment) -> None:
    """Refuses a config that `sample` would fail on; raises as `requested` does."""
    requested(experiment)


def facts_of(experiment: Experiment, loaded: Loaded) -> dict[str, Any]:
    """The facts that files of samples depend on, but for their indices."""
    return sampling_protocol(experiment, loaded.step, loaded.origin) | {"quantize": "round"}


def _about(experiment: Experiment, loaded: Loaded) -> dict[str, Any]:
    """The record of the set of samples of the config, which tells it from others."""
    return facts_of(experiment, loaded) | {"parameters": digest(crc32s(loaded.params))}


def folder_apart(experiment: Experiment, workdir: Path, loaded: Loaded) -> Path:
    """A folder named by what the samples are of, which holds nothing else: for --mode=sample.

    Like samples/step4000_seed0_ancestral1000; a set of other samples under the same name, such as
    of another training in the same working directory, stays, and the new one gets a number.
    """
    facts, about = facts_of(experiment, loaded), _about(experiment, loaded)
    asked = facts["labels"].replace(" ", "")
    short = asked if re.fullmatch(r"[\w,]{1,40}", asked, re.ASCII) else digest(asked)[:6]
    labels = "" if asked == "all" else f"_labels{short}"
    name = f"step{loaded.step}_seed{experiment.config.seed}_{facts['sampler']['name']}"
    prompts = facts.get("prompts")
    labels += f"_prompts{digest(prompts)[:6]}" if prompts else ""
    name += f"{facts['num_steps']}{labels}{'_best' if facts['checkpoint'] == 'best' else ''}"
    folder, number = workdir / "samples" / name, 1
    while not set_of_run(workdir, about, folder).is_free:
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def sample(
    experiment: Experiment, workdir: Path, loaded: Loaded, place: Place = OWN
) -> dict[str, Any]:
    """Draws samples from what was loaded into a folder; those that are there already stay.

    Writes npz files (arr_0 uint8[N, H, W, C], indices, finite, evaluations) or PNG files by index,
    samples.png, and progress.png (estimates of x_0 along the chain, DDPM Figure 6). After an
    interruption, even by a lost machine, the same call draws what is missing. The section "sample"
    of results.json tells of the training's own set, as it does of a first one.

    Args:
        experiment: whose config says how.
        workdir: of the run.
        loaded: the parameters.
        place: which samples, and where to.

    Raises:
        ValueError: if `place.out` holds other samples.
    """
    config, out = experiment.config.sample, place.out
    indices = list(range(config.num_images)) if place.indices is None else list(place.indices)
    files = set_of_run(workdir, _about(experiment, loaded), out or workdir / "samples")
    if out is not None and not files.is_free:
        raise ValueError(
            f"{out} holds something else than these samples. Name another folder, or move it away."
        )
    pictures = config.format == "png"
    missing = _missing(files, indices, pictures)
    unfinished = not devices.from_main(np.array(files.are_finished(indices, pictures)))
    if not missing and not unfinished:
        console.log(f"sampled   nothing: these samples are in {files.folder} already")
        facts = facts_of(experiment, loaded)
        return facts if out is not None else read_results(workdir).get("sample", facts)
    if devices.is_main_process():
        files.prepare()
    console.doing("sampling")
    begin = time.perf_counter()
    mesh = devices.make_mesh()
    progress = _draw_missing(experiment, loaded.params, mesh, files, indices, missing)
    seconds = time.perf_counter() - begin
    shards = [
        indices[first : first + config.images_per_file]
        for first in range(0, len(indices), config.images_per_file)
    ]
    results = facts_of(experiment, loaded) | {"num_images": len(indices)}
    if devices.is_main_process():
        written = files.finish(shards, pictures)
        results |= _tell(experiment, workdir, loaded.step, files, indices, progress)
        names = [*written, files.folder / "samples.png", files.folder / "progress.png"]
        results["seconds"] = round(seconds, 2)
        results["files"] = [os.path.relpath(path, workdir) for path in names]
        if out is None or "sample" not in read_results(workdir):
            write_results(workdir, "sample", results, experiment.config)
        files.clear()
    console.log(
        f"sampled   {len(indices):,} images in {seconds:.1f} s: {files.folder / 'samples.png'}"
    )
    return results


def _missing(files: SampleFiles, indices: list[int], pictures: bool) -> list[int]:
    """Those of `indices` that are not there, the same in every process."""
    there = np.zeros(len(indices), bool)
    if devices.is_main_process():
        done = files.done(pictures)
        there = np.array([index in done for index in indices])
    there = np.asarray(devices.from_main(there))
    return [index for index, done in zip(indices, there, strict=True) if not done]


def _draw_missing(
    experiment: Experiment,
    params: Any,
    mesh: Mesh,
    files: SampleFiles,
    indices: list[int],
    missing: list[int],
) -> np.ndarray:
    """Draws and keeps them batch by batch; returns the progress of the first few of `indices`.

    A batch is always of the same places in `indices`, whatever is missing of it, so that what is
    drawn after an interruption is to the last bit what would have been drawn without one.
    """
    config = experiment.config.sample
    size = devices.round_up(min(config.batch_size, len(indices)), mesh)
    wanted, pictures = set(missing), config.format == "png"
    batches = [indices[first : first + size] for first in range(0, len(indices), size)]
    batches = [batch for batch in batches if not wanted.isdisjoint(batch)]
    if len(missing) < len(indices):
        there = len(indices) - len(missing)
        console.log(f"samples   {there:,} of {len(indices):,} are there already")
    num_steps = steps_taken(experiment, config.num_steps)
    columns, rows = min(config.progress_columns, num_steps), indices[: config.progress_images]
    record = tuple(int(t) for t in uniform(num_steps, columns)[::-1])
    plain = make_sample_fn(experiment, mesh, num_steps=config.num_steps)
    recording = make_sample_fn(experiment, mesh, num_steps=config.num_steps, record=record)
    with console.progress("sampling steps", (len(batches) + 1) * num_steps) as each:
        for batch in batches:
            drawn = draw_indices(plain, params, batch, size, mesh, each=each)
            drawn.warn()
            if devices.is_main_process():
                found = drawn.samples, np.array(batch), drawn.finite, drawn.evaluations
                files.keep(Rows(*found), pictures)
        few = devices.round_up(len(rows), mesh)
        return draw_indices(recording, params, rows, few, mesh, each=each).progress


def _say_prompts(told: dict[int, str]) -> None:
    """Says what the first few samples were asked for, by their index."""
    for index, prompt in list(told.items())[:WIDEST]:
        console.log(f"sample    {index}: {shown(prompt)}")
    if len(told) > WIDEST:
        console.log(f"          and {len(told) - WIDEST:,} more, in prompts.json")


def _tell(
    experiment: Experiment,
    workdir: Path,
    step: int,
    files: SampleFiles,
    indices: list[int],
    progress: np.ndarray,
) -> dict[str, Any]:
    """Writes the pictures, and says what the samples took."""
    config = experiment.config.sample
    rows = files.rows(indices, pictures=True)
    first = files.pixels(indices[:SHOWN], config.format == "png")
    prompts = prompts_of(experiment) if experiment.method.tokenizer else [""]
    told = {index: prompts[index % len(prompts)] for index in indices}
    if prompts == [""]:
        grid = images.grid(first)
    else:
        write_json(files.folder / "prompts.json", told)
        _say_prompts(told)
        by_prompt = 1 < len(prompts) <= WIDEST and len(indices) >= len(prompts)
        below = images.captioned(first, [told[index] for index in indices[:SHOWN]])
        grid = images.grid(below, len(prompts) if by_prompt else None)  # a column for each
    images.save(files.folder / "samples.png", grid)
    show(workdir, experiment.config, step, {"eval/samples": grid})
    by_row = progress.swapaxes(0, 1).reshape(-1, *first.shape[1:])
    images.save(files.folder / "progress.png", images.grid(by_row, len(progress)))
    bad = int((~rows.finite).sum())
    if bad:
        console.log(f"WARNING   {bad} of {len(indices)} samples are not finite.")
    return {
        "indices": written_indices(indices),
        "not_finite": bad,
        "evaluations": float(rows.evaluations.mean()),
    }
