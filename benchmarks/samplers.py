"""Quality and time of every sampler against its evaluations of the network, of one trained model.

    python -m benchmarks.samplers runs/digits --out=docs/samplers/digits.csv
    python -m benchmarks.samplers --plot=docs/samplers.png docs/samplers/*.csv
    python -m benchmarks.samplers --table docs/samplers/*.csv

The first draws --num samples a row and a seed, and judges them by the features that evaluation uses
(Inception where its weights are, else the data set's classifier: then a distance is no FID). The
seconds are those of the fastest batch, compilation left out, on a machine that should do nothing
else. Rows that are there already are not drawn again. The second draws the CSV files as one plot,
the third prints them.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import devices
from experiments.build import build
from experiments.configs import saved
from experiments.drawing import compile_sampling, draw_indices, requested_labels
from experiments.features.references import make_judge
from experiments.files import markdown
from experiments.state import load_ema

ANCESTRAL = {"name": "ancestral"}
AUTO = "auto"  # the sampler's own timesteps
FAST: dict[str, dict[str, Any]] = {  # others after a comma
    "ancestral": ANCESTRAL,
    "DDIM": {"name": "ddim"},
    "DDIM, quadratic": {"name": "ddim"},
    "Heun": {"name": "heun"},
    "DPM-Solver++ 2M": {"name": "dpm_solver_pp", "order": 2},
    "DPM-Solver++ 2M, uniform": {"name": "dpm_solver_pp", "order": 2},
    "DPM-Solver++ 3M": {"name": "dpm_solver_pp", "order": 3},
    "DPM-Solver++ 3M, uniform": {"name": "dpm_solver_pp", "order": 3},
    "UniPC-3": {"name": "unipc", "order": 3},
    "UniPC-3, uniform": {"name": "unipc", "order": 3},
    "UniPC-3, quadratic": {"name": "unipc", "order": 3},
}
MARKS = ("s", "^", "D", "v")  # of samplers with a single row, whose colours come again
EVALUATIONS = (5, 10, 20, 50)
COLUMNS = (
    *("sampler", "spacing", "steps", "evaluations", "seed", "num"),
    *("distance", "quantity", "seconds_per_image"),
)


class Row(NamedTuple):
    """One way to sample."""

    label: str
    sampler: dict[str, Any]
    spacing: str
    steps: int  # 0 is every timestep
    seeds: int


def rows(seeds: int) -> Iterator[Row]:
    """All of them; what the others are held against comes last, as it takes longest."""
    for evaluations in (20, *(n for n in EVALUATIONS if n != 20)):
        for label, sampler in FAST.items():
            steps = (evaluations + 1) // 2 if sampler["name"] == "heun" else evaluations
            spacing = label.partition(", ")[2] or AUTO
            yield Row(label, sampler, spacing, steps, seeds if evaluations == 20 else 1)
    for tolerance in (1e-2, 1e-3):
        yield Row("adaptive flow", {"name": "flow", "tolerance": tolerance}, AUTO, 0, 1)
    langevin = {"name": "annealed_langevin", "steps_per_level": 4}
    yield Row("annealed Langevin", langevin, AUTO, 50, 1)
    yield Row("predictor–corrector", {"name": "predictor_corrector"}, AUTO, 50, 1)
    yield Row("ancestral", ANCESTRAL, AUTO, 0, seeds)


def measure(workdir: Path, out: Path, num: int, batch: int, seeds: int) -> None:
    """Appends the rows that are missing to a CSV file."""
    config = saved.get_config(str(workdir))
    experiment, mesh = build(config), devices.make_mesh()
    params = load_ema(experiment, workdir, mesh).params
    judge = make_judge(experiment.dataset, config.evaluate, mesh, drop=1)
    done = set()
    if out.is_file():
        with out.open() as stream:
            done = {
                (r["sampler"], r["spacing"], r["steps"], r["seed"]) for r in csv.DictReader(stream)
            }
    out.parent.mkdir(parents=True, exist_ok=True)
    new = not out.is_file()
    with out.open("a", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()
        for row in rows(seeds):
            if row.sampler["name"] == "flow" and row.sampler["tolerance"] != 1e-3:
                row = row._replace(label=f"{row.label}, tolerance {row.sampler['tolerance']:g}")
            changed = ConfigDict(config.to_dict())
            changed.sample.sampler = ConfigDict(row.sampler)
            changed.sample.spacing = ConfigDict({"name": row.spacing})
            changed.sample.num_steps = row.steps
            sampled = build(changed)
            labels = requested_labels("all", sampled.method)
            sample_fn = compile_sampling(sampled, mesh, num_steps=row.steps)
            steps = sampled.method.sampling(row.steps, ()).num_steps
            spacing = sampled.method.protocol["spacing"]["name"]
            for seed in range(row.seeds):
                if (row.label, spacing, str(steps), str(seed)) in done:
                    continue
                pictures, evaluations, seconds = draw(
                    sample_fn, params, num, batch, seed, labels, mesh
                )
                distance = judge.distance(judge.features(pictures, mesh).features)
                quantity = judge.extractor.quantity("fid_train")
                values = (
                    *(row.label, spacing, steps, evaluations, seed, num),
                    *(f"{distance:.4f}", quantity, f"{seconds:.5f}"),
                )
                table.writerow(dict(zip(COLUMNS, values, strict=True)))
                stream.flush()
                print(*values, flush=True)


def draw(
    sample_fn: Any, params: Any, num: int, batch: int, seed: int, labels: np.ndarray, mesh: Any
) -> tuple[np.ndarray, float, float]:
    """(samples, mean number of evaluations, seconds an image in the fastest batch)."""
    parts, times, size = [], [], devices.round_up(batch, mesh)

    def of_seed(params: Any, indices: Any) -> Any:
        return sample_fn(params, indices, np.uint32(seed), labels)

    for first in range(0, num, size):
        begin = time.perf_counter()
        indices = range(first, min(first + size, num))
        parts.append(draw_indices(of_seed, params, indices, size, mesh))
        times.append((time.perf_counter() - begin) / size)
    pictures = np.concatenate([part.samples for part in parts])
    evaluations = np.concatenate([part.evaluations for part in parts])
    return pictures, float(evaluations.mean()), min(times)


class Point(NamedTuple):
    """What one way gave with so many evaluations: the mean over its seeds, and what it takes.

    seconds: an image; the evaluations times the fastest that one was under this sampler in any row
        of the file, since a machine that others use too slows some rows and not others.
    """

    evaluations: float
    distance: float
    deviation: float | None  # over seeds; None for a single one
    seconds: float


def read(path: Path) -> dict[str, list[Point]]:
    """What a CSV file has of each sampler, the fewest evaluations first."""
    found: dict[str, dict[float, list[dict[str, str]]]] = {}
    with path.open() as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["sampler"], {}).setdefault(float(row["evaluations"]), []).append(
                row
            )
    points: dict[str, list[Point]] = {}
    for label, way in found.items():
        every = [row for same in way.values() for row in same]
        one = min(float(r["seconds_per_image"]) / float(r["evaluations"]) for r in every)
        for evaluations, same in sorted(way.items()):
            distances = np.array([float(row["distance"]) for row in same])
            deviation = float(distances.std(ddof=1)) if len(same) > 1 else None
            mean = float(distances.mean())
            point = Point(evaluations, mean, deviation, one * evaluations)
            points.setdefault(label, []).append(point)
    return points


def table(path: Path) -> str:
    """A CSV file as Markdown: distance, and milliseconds an image, for each sampler."""
    lines = [markdown.head(["sampler", "evaluations: distance (milliseconds an image)"])]
    for label, points in read(path).items():
        cells = [
            f"{p.evaluations:g}: {p.distance:.2f}"
            + (f" ± {p.deviation:.2f}" if p.deviation is not None else "")
            + f" ({1000 * p.seconds:.3g})"
            for p in points
        ]
        lines.append(markdown.row([label, "; ".join(cells)]))
    return "\n".join(lines)


def plot(paths: Sequence[Path], out: Path) -> None:
    """Distance against evaluations, and against seconds an image, a column for each file."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5.2 * len(paths), 7), layout="constrained")
    axes = canvas.subplots(2, len(paths), squeeze=False)
    for column, path in enumerate(paths):
        for label, points in read(path).items():
            evaluations, distances, _, seconds = zip(*points, strict=True)
            marker = "o" if len(points) > 1 else MARKS[len(axes[0, column].lines) % len(MARKS)]
            style: Any = dict(marker=marker, markersize=3.5, linewidth=1.1, label=label)
            axes[0, column].plot(evaluations, distances, **style)
            axes[1, column].plot(1000 * np.array(seconds), distances, **style)
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log", ylabel="distance to train (no FID)")
            axis.grid(alpha=0.3, which="both")
        axes[0, column].set(title=path.stem, xlabel="evaluations of the network")
        axes[1, column].set(xlabel="milliseconds an image")
    fullest = max(axes[0], key=lambda axis: len(axis.lines))
    handles, labels = fullest.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    canvas.savefig(out, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures a model, or draws what was measured."""
    parser = argparse.ArgumentParser("benchmarks.samplers", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="a working directory, or CSV files")
    parser.add_argument("--out", type=Path, help="the CSV file to add rows to")
    parser.add_argument("--plot", type=Path, help="draw the CSV files into this PNG instead")
    parser.add_argument("--table", action="store_true", help="print the CSV files as Markdown")
    parser.add_argument("--num", type=int, default=1000, help="samples a row and seed")
    parser.add_argument("--batch", type=int, default=250, help="samples at a time")
    parser.add_argument("--seeds", type=int, default=3, help="of the rows with error bars")
    options = parser.parse_args(argv)
    if options.plot:
        plot(options.paths, options.plot)
    elif options.table:
        for path in options.paths:
            print(f"{path.stem}\n\n{table(path)}\n")
    elif options.out is None or len(options.paths) != 1:
        parser.error("give one working directory and --out, or CSV files and --plot.")
    else:
        measure(options.paths[0], options.out, options.num, options.batch, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
