"""The pictures of a report: learning curves, and samples drawn from equal noise."""

import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.reports.collect import Run
from experiments.reports.rows import Row
from experiments.workdir.metrics_file import windows

matplotlib.use("Agg")


NUM_SAMPLES = 16  # of each row
SIDE = 48  # pixels to which a sample is brought


def finite_windows(run: Run) -> list[dict[str, float]]:
    """The records of the run's log whose loss is a number."""
    return [record for record in windows(run)[0] if math.isfinite(record["loss"])]


def learning_curves(path: Path, rows: Sequence[Row]) -> list[str]:
    """Loss against step, a panel for each row and a line for each seed.

    The rows' losses are different quantities, so every panel has an axis of its own. A cross marks
    where a run diverged. Nothing is written where no run has a log.

    Returns:
        What could not be read.
    """
    logs = {run.place: windows(run) for row in rows for run in row.runs}
    problems = [
        f"{place}/metrics.jsonl: {damaged} lines cannot be read."
        for place, (_, damaged) in logs.items()
        if damaged
    ]
    shown = [row for row in rows if any(logs[run.place][0] for run in row.runs)]
    if not shown:
        return problems
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        height,
        columns,
        figsize=(3.9 * columns, 2.7 * height),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, shown, strict=False):
        every = []
        for run in row.runs:
            records = [r for r in logs[run.place][0] if math.isfinite(r["loss"])]
            steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
            if not records:
                continue
            every += losses
            (line,) = axis.plot(steps, losses, linewidth=1.1, label=f"seed {run.seed}")
            if run.state == "diverged":
                axis.plot(steps[-1:], losses[-1:], "x", color=line.get_color(), markersize=7)
        if every and min(every) > 0 and max(every) > 10 * min(every):
            axis.set_yscale("log")
        axis.set_title(row.label, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.legend(fontsize=7)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return problems


def _strip(images: np.ndarray) -> Image.Image:
    """Samples side by side, small ones enlarged to squares of pixels, large ones shrunk."""
    zoom = max(1, SIDE // images.shape[1])
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=128)
    strip = np.concatenate(list(spaced), axis=1)[:, :-2]
    picture = Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip)
    if images.shape[1] > 2 * SIDE:
        scale = SIDE / images.shape[1]
        picture = picture.resize((round(picture.width * scale), SIDE), Image.Resampling.LANCZOS)
    return picture


def _first_samples(path: Path) -> np.ndarray:
    """The first samples of samples.npz.

    Raises:
        ValueError, OSError: if the file is damaged or holds something else.
    """
    with np.load(path, allow_pickle=False) as stored:
        images = stored["arr_0"][:NUM_SAMPLES]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"holds {images.dtype}{list(images.shape)}, not uint8[N, H, W, 1 or 3]")
    return images


class Strips(NamedTuple):
    """Each row's first samples of one seed: label -> PNG, or why there is none."""

    seed: int
    pictures: dict[str, str | Path]


def sample_strips(folder: Path, prefix: str, rows: Sequence[Row]) -> Strips | None:
    """Draws the strips into PREFIXsamplesN.png; None where no run has samples.

    The seed is the one that most rows have samples of, the smallest of such.
    """
    found = {
        row.label: {
            run.seed: run.folder / "samples" / "samples.npz"
            for run in row.runs
            if run.folder is not None and (run.folder / "samples" / "samples.npz").is_file()
        }
        for row in rows
    }
    count = Counter(seed for seeds in found.values() for seed in seeds if seed is not None)
    if not count:
        return None
    seed = min(seed for seed, number in count.items() if number == max(count.values()))
    result: dict[str, str | Path] = {}
    for number, row in enumerate(rows):
        if seed not in found[row.label]:
            state = next((run.state for run in row.runs if run.seed == seed), "not planned")
            result[row.label] = f"none: seed {seed} is {state}"
            continue
        try:
            picture = _strip(_first_samples(found[row.label][seed]))
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            result[row.label] = f"samples.npz of seed {seed} cannot be read: {error}"
            continue
        path = folder / f"{prefix}samples{number}.png"
        picture.save(path)
        result[row.label] = path
    return Strips(seed, result)
