r"""Formulations of diffusion side by side: bits/dim, and distance of samples at few evaluations.

    python -m launch.sweep --config=experiments/configs/digits.py --workdir=runs/formulations \
        --ablations=eps_simple,v_simple,continuous --seeds=0,1,2
    python -m benchmarks.formulations runs/formulations --out=docs/formulations/digits.csv
    python -m benchmarks.formulations --table docs/formulations/digits.csv

The first trains them, one network and as many steps each. The second draws --num samples of every
run by DDIM, which takes steps in noise / signal on every path, and judges them by the features that
evaluation uses; what is in the file is not drawn again. The third prints the mean and the standard
deviation over the seeds. Bits/dim are those that the run measured of itself.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from benchmarks.samplers import draw
from experiments import devices
from experiments.build import build
from experiments.configs import saved
from experiments.drawing import compile_sampling, requested_labels
from experiments.features.references import make_judge
from experiments.files import markdown
from experiments.reports.collect import collect
from experiments.state import load_ema
from experiments.workdir.run import Run

EVALUATIONS = (1, 2, 5, 20, 50)
BITS = "bits_per_dim"
OF_RUN = ("ablation", "seed", "steps", BITS, "training_seconds")
COLUMNS = (*OF_RUN, "evaluations", "distance", "quantity")


def facts(run: Run) -> dict[str, Any]:
    """The columns that a run has by itself; bits/dim only where it measured its bound."""
    bound = run.sections.get("bpd")
    bits = bound.values[BITS]["value"] if bound else ""
    found = (run.ablation, run.seed, run.num_steps, bits, run.training_seconds)
    return dict(zip(OF_RUN, found, strict=True))


def distances(
    workdir: Path, num: int, batch: int, missing: Sequence[int]
) -> Iterator[tuple[int, float, str]]:
    """(evaluations, distance to the train split, quantity) for each number that is missing."""
    config, mesh = saved.get_config(str(workdir)), devices.make_mesh()
    config.sample.sampler = ConfigDict({"name": "ddim"})
    config.sample.spacing = ConfigDict({"name": "auto"})
    config.sample.num_steps = max(missing)
    experiment = build(config)
    params = load_ema(experiment, workdir, mesh).params
    judge = make_judge(experiment.dataset, config.evaluate, mesh, drop=1)
    labels = requested_labels("all", experiment.method)
    for steps in missing:
        sample_fn = compile_sampling(experiment, mesh, num_steps=steps)
        pictures, evaluations, _ = draw(sample_fn, params, num, batch, 0, labels, mesh)
        distance = judge.distance(judge.features(pictures, mesh).features)
        yield round(evaluations), distance, judge.extractor.quantity("fid_train")


def measure(sweep: Path, out: Path, num: int, batch: int) -> None:
    """Appends the rows that are missing of every finished run to a CSV file."""
    known = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=COLUMNS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if known.empty:
            table.writeheader()
        for run in collect(sweep).runs:
            if run.folder is None or run.state != "finished":
                print(f"{run.name} is {run.state}: left out.", flush=True)
                continue
            own = known[(known.ablation == run.ablation) & (known.seed == run.seed)]
            missing = [n for n in EVALUATIONS if n not in set(own.evaluations)]
            for evaluations, distance, quantity in distances(run.folder, num, batch, missing):
                row = facts(run) | dict(
                    evaluations=evaluations, distance=f"{distance:.4f}", quantity=quantity
                )
                table.writerow(row)
                stream.flush()
                print(*row.values(), flush=True)


def cell(values: pd.Series, digits: int) -> str:
    """The mean, with the standard deviation where there are several."""
    found = np.asarray(values.dropna(), np.float64)
    if not found.size:
        return "–"
    spread = f" ± {found.std(ddof=1):.{digits}f}" if found.size > 1 else ""
    return f"{found.mean():.{digits}f}{spread}"


def table(path: Path) -> str:
    """A CSV file as Markdown, a line for each formulation."""
    rows = pd.read_csv(path)
    counts = sorted(set(rows.evaluations))
    head = ["formulation", "seeds", "bits/dim", "training (s)"]
    lines = [markdown.head([*head, *(f"{n} evaluations" for n in counts)])]
    for ablation, its in rows.groupby("ablation", sort=False):
        runs = its.drop_duplicates("seed")
        cells = [f"`{ablation}`", str(len(runs)), cell(runs[BITS], 3)]
        cells.append(cell(runs.training_seconds, 0))
        cells += [cell(its[its.evaluations == n].distance, 2) for n in counts]
        lines.append(markdown.row(cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the runs of a sweep, or prints what was measured."""
    parser = argparse.ArgumentParser("benchmarks.formulations", description=__doc__)
    parser.add_argument("path", type=Path, help="the folder of a sweep, or with --table a CSV file")
    parser.add_argument("--out", type=Path, help="the CSV file to add rows to")
    parser.add_argument("--table", action="store_true", help="print the CSV file as Markdown")
    parser.add_argument("--num", type=int, default=1000, help="samples a row")
    parser.add_argument("--batch", type=int, default=250, help="samples at a time")
    options = parser.parse_args(argv)
    if options.table:
        print(table(options.path))
    elif options.out is None:
        parser.error("give the folder of a sweep and --out, or a CSV file and --table.")
    else:
        measure(options.path, options.out, options.num, options.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
