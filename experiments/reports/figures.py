"""The pictures of a report: learning curves, and samples drawn from equal noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import multimode
from types import MappingProxyType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.files.tensors import read_npz
from experiments.reports.variants import Variant
from experiments.workdir.run import finite_windows

matplotlib.use("Agg")

SAMPLES = "samples/samples.npz"  # of a run
NUM_SAMPLES = 16  # of each variant
SIDE = 48  # pixels to which a sample is brought
NONE: Mapping[str, Any] = MappingProxyType({"curves": "", "seed": None, "strips": {}})  # see `draw`


def _curves_of(axis: Any, variant: Variant) -> None:
    """One panel: a line for each seed, with a cross where it diverged."""
    for run in variant.runs:
        records = finite_windows(run.folder)[0]
        steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
        if not records:
            continue
        (line,) = axis.plot(steps, losses, linewidth=1.1, label=f"seed {run.seed}")
        if run.state == "diverged":
            axis.plot(steps[-1:], losses[-1:], "x", color=line.get_color(), markersize=7)
    low, high = axis.dataLim.intervaly
    if 0 < 10 * low < high:
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


def sample_strips(
    folder: Path, prefix: str, variants: Sequence[Variant]
) -> tuple[int | None, dict[str, dict[str, str]]]:
    """Draws each variant's first samples of one seed into PREFIXsamplesN.png.

    Returns:
        The seed that most variants have samples of, the smallest of such; None where no run has
        any. And label -> {"picture": name} or {"reason": why there is none}.
    """
    found: list[dict[int | None, Path]] = []
    for variant in variants:
        paths = {run.seed: run.folder / SAMPLES for run in variant.runs if run.folder}
        found.append({seed: path for seed, path in paths.items() if path.is_file()})
    seeds = [seed for paths in found for seed in paths if seed is not None]
    if not seeds:
        return None, {}
    seed = min(multimode(seeds))
    result: dict[str, dict[str, str]] = {}
    for number, (variant, paths) in enumerate(zip(variants, found, strict=True)):
        name = f"{prefix}samples{number}.png"
        states = [run.state for run in variant.runs if run.seed == seed] or ["not planned"]
        strip = {"reason": f"none: seed {seed} is {states[0]}"}
        if seed in paths:
            try:
                _strip(_first_samples(paths[seed])).save(folder / name)
                strip = {"picture": name}
            except (ValueError, OSError) as error:
                said = str(error).removeprefix(f"{paths[seed]} ")
                strip = {"reason": f"samples.npz of seed {seed} cannot be read: {said}"}
        result[variant.label] = strip
    return seed, result


def draw(folder: Path, prefix: str, variants: Sequence[Variant]) -> dict[str, Any]:
    """All pictures of a data set, drawn into PREFIX*.png of `folder`.

    curves: the name of the PNG, "" where no run has a log.
    seed, strips: as `sample_strips` returns them.
    """
    name = f"{prefix}curves.png"
    curves = name if learning_curves(folder / name, variants) else ""
    seed, strips = sample_strips(folder, prefix, variants)
    return {"curves": curves, "seed": seed, "strips": strips}
