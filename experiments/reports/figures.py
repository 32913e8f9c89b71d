"""The pictures of a report: learning curves, and samples drawn from equal noise."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.files.tensors import read_npz
from experiments.reports.variants import DatasetRuns, Variant
from experiments.workdir.run import Run, finite_windows

matplotlib.use("Agg")

NUM_SAMPLES = 16  # of each variant
SIDE = 48  # pixels to which a sample is brought
NONE: Mapping[str, Any] = MappingProxyType({"curves": "", "seed": None, "strips": {}})  # see `draw`


def _curves_of(axis: Any, variant: Variant) -> None:
    """One panel: a line for each seed, with a cross where it diverged."""
    every: list[float] = []
    for run in variant.runs:
        records = finite_windows(run.folder)[0]
        steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
        if not records:
            continue
        every += losses
        (line,) = axis.plot(steps, losses, linewidth=1.1, label=f"seed {run.seed}")
        if run.state == "diverged":
            axis.plot(steps[-1:], losses[-1:], "x", color=line.get_color(), markersize=7)
    if every and min(every) > 0 and max(every) > 10 * min(every):
        axis.set_yscale("log")
    axis.set_title(variant.label, fontsize=9)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8, labelbottom=True)
    axis.legend(fontsize=7)


def learning_curves(path: Path, variants: Sequence[Variant]) -> bool:
    """Draws loss against step, a panel for each variant; returns whether any run has a log.

    The variants' losses are different quantities, so every panel has an axis of its own.
    """
    shown = [v for v in variants if any(finite_windows(run.folder)[0] for run in v.runs)]
    if not shown:
        return False
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
    for axis, variant in zip(axes.flat, shown, strict=False):
        _curves_of(axis, variant)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True


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
        ValueError: if it holds something else.
    """
    images = read_npz(path).get("arr_0", np.empty(0))[:NUM_SAMPLES]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"holds {images.dtype}{list(images.shape)}, not uint8[N, H, W, 1 or 3]")
    return images


def _samples_of(run: Run) -> Path | None:
    """The run's samples.npz, where it has one."""
    path = run.folder / "samples" / "samples.npz" if run.folder else None
    return path if path and path.is_file() else None


def sample_strips(
    folder: Path, prefix: str, variants: Sequence[Variant]
) -> tuple[int | None, dict[str, dict[str, str]]]:
    """Draws each variant's first samples of one seed into PREFIXsamplesN.png.

    Returns:
        The seed that most variants have samples of, the smallest of such; None where no run has
        any. And label -> {"picture": name} or {"reason": why there is none}.
    """
    found = [{run.seed: run for run in v.runs if _samples_of(run)} for v in variants]
    count = Counter(seed for seeds in found for seed in seeds if seed is not None)
    if not count:
        return None, {}
    seed = min(seed for seed, number in count.items() if number == max(count.values()))
    result: dict[str, dict[str, str]] = {}
    for number, (variant, runs) in enumerate(zip(variants, found, strict=True)):
        path = _samples_of(runs[seed]) if seed in runs else None
        name = f"{prefix}samples{number}.png"
        try:
            if path is not None:
                _strip(_first_samples(path)).save(folder / name)
                result[variant.label] = {"picture": name}
                continue
            states = [run.state for run in variant.runs if run.seed == seed]
            reason = f"none: seed {seed} is {(*states, 'not planned')[0]}"
        except (ValueError, OSError) as error:
            said = str(error).removeprefix(f"{path} ")
            reason = f"samples.npz of seed {seed} cannot be read: {said}"
        result[variant.label] = {"reason": reason}
    return seed, result


def draw(folder: Path, datasets: Sequence[DatasetRuns]) -> dict[str, dict[str, Any]]:
    """All pictures of a report, drawn into `folder`: data set -> what they are.

    curves: the name of the PNG, "" where no run has a log.
    seed, strips: as `sample_strips` returns them.
    """
    found = {}
    for number, part in enumerate(datasets):
        prefix = f"{number}_" if len(datasets) > 1 else ""
        name = f"{prefix}curves.png"
        curves = name if learning_curves(folder / name, part.variants) else ""
        seed, strips = sample_strips(folder, prefix, part.variants)
        found[part.dataset] = {"curves": curves, "seed": seed, "strips": strips}
    return found
