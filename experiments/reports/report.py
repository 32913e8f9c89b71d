"""A report of runs: templates/report.jinja filled with their tables, warnings and pictures."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.configs.published import INCEPTION
from experiments.files.atomic import write_json
from experiments.lookup import suggestion
from experiments.reports import figures, paper, render, tables
from experiments.reports.averages import Numbers, numbers
from experiments.reports.collect import load, to_summary
from experiments.reports.variants import DatasetRuns, group_runs
from experiments.workdir.run import Run


def _merged(warnings: dict[str, list[str]]) -> list[str]:
    """The warnings of all sections; what holds for several is said once."""
    where: dict[str, list[str]] = {}
    for section, lines in warnings.items():
        for line in lines:
            where.setdefault(line, []).append(section)
    return [f"{', '.join(sections)}: {line}" for line, sections in where.items()]


def _fate(run: Run) -> str:
    """What became of a run that did not finish, as a sentence without its name."""
    step = f" at step {run.train['step']:,}" if "step" in run.train else ""
    tries = f" after {run.attempts} attempts" if run.attempts > 1 else ""
    why = f": {run.message}" if run.message else ""
    last = f" (last in order: {tables.reached(run)})" if tables.reached(run) else ""
    return f"{run.state}{step}{tries}{why}{last}"


def _pasts(part: DatasetRuns) -> list[str]:
    """Of finished runs, those whose training went on as another one."""
    return [
        f"{variant.label}, seed {run.seed}: {run.message}"
        for variant in part.variants
        for run in variant.runs
        if run.state == "finished" and run.message
    ]


def _missing(part: DatasetRuns, sections: Sequence[str]) -> list[str]:
    """What is not there, and why."""
    who: dict[str, dict[str, list[str]]] = {}  # fate -> row -> seeds
    for variant in part.variants:
        for run in variant.runs:
            seed = "unknown" if run.seed is None else str(run.seed)
            words = [f"finished without {name}" for name in sections if name not in run.sections]
            for fate in words if run.state == "finished" else [_fate(run)]:
                who.setdefault(fate, {}).setdefault(variant.label, []).append(seed)
    return [
        "; ".join(f"{label}, seed {', '.join(seeds)}" for label, seeds in rows.items())
        + f": {fate}"
        for fate, rows in who.items()
    ]


def _logs(part: DatasetRuns) -> list[tuple[str, Sequence[str]]]:
    """The end of the log of each failure, and whose it is; of those that failed alike, one log."""
    alike: dict[str, list[Run]] = {}
    for run in part.runs:
        if run.log_tail:
            alike.setdefault(_fate(run), []).append(run)
    return [
        (
            f"End of the log of {runs[0].name}"
            + (f" (and alike: {', '.join(r.name for r in runs[1:])})" if runs[1:] else ""),
            runs[0].log_tail,
        )
        for runs in alike.values()
    ]


def _sorted(part: DatasetRuns, quantity: str) -> DatasetRuns:
    """The rows by a quantity, the best first and those without it last.

    Raises:
        ValueError: if no row has it.
    """
    table = numbers(part).table
    found = table[(table["quantity"] == quantity) & table["mean"].notna()]
    if found.empty:
        raise ValueError(
            f"--sort={quantity}: no row of {part.dataset} has it. "
            f"{suggestion(quantity, sorted(table['quantity'].unique()))}"
        )
    key = (found["section"].iloc[0], quantity)
    sign = -1 if tables.HEADLINE.get(key) is max else 1
    means = {line.row: sign * line.mean for line in found[found["section"] == key[0]].itertuples()}
    ordered = sorted(part.variants, key=lambda variant: means.get(variant.label, math.inf))
    return part._replace(variants=tuple(ordered))


def _part(
    part: DatasetRuns, found: Numbers, pictures: dict[str, Any], base: str | None
) -> dict[str, Any]:
    """Everything about one data set that the template says."""
    sections = dict(list(found.table.groupby("section", sort=False)))
    measured = [section for run in part.runs for section in run.sections.values()]
    extractors = {str(section.protocol.get("extractor", INCEPTION)) for section in measured}
    settings = [f"{name}={value}" for run in part.runs for name, value in run.settings.items()]
    return {
        "name": part.dataset,
        "runs": part.runs,
        "num_rows": len(part.variants),
        "steps": [f"{n:,}" for n in sorted({run.num_steps for run in part.runs if run.num_steps})],
        "settings": list(dict.fromkeys(settings)),
        "extractors": sorted(extractors - {INCEPTION}),
        "beside_other_data": part.dataset != "cifar10" and any(found.table["paper"]),
        "warnings": [*part.warnings, *_merged(found.warnings), *_pasts(part)],
        "headline": tables.headline_table(part, found.table, base),
        "missing": _missing(part, list(sections)),
        "logs": _logs(part),
        "pictures": pictures,
        "unlike_chains": len({run.sample.get("num_steps") for run in part.runs if run.sample}) > 1,
        "sections": {name: tables.section_table(part, t) for name, t in sections.items()},
        "protocols": found.protocols,
        "run_table": tables.run_table(part, base),
    }


def _write_csv(out: Path, datasets: Sequence[DatasetRuns], measured: pd.DataFrame) -> None:
    """numbers.csv, of the measured ones of `Numbers.table`, and runs.csv."""
    measured = measured[measured["seeds"] > 0].assign(notes=measured["notes"].map("; ".join))
    runs = pd.concat([tables.run_lines(part) for part in datasets])
    for name, lines in (("numbers", measured), ("runs", runs)):
        lines.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")


def write(source: Path, out: Path, links: bool = True, sort: str = "") -> None:
    """Writes the report of the runs below `source` into the folder `out`.

    Args:
        source: a folder of runs, or the summary.json of a report, whose pictures lie in `out`.
        out: is made where there is none.
        links: whether the pages lead to the files of the runs.
        sort: a quantity by which the rows are ordered; "" keeps the order of the ablations.

    Raises:
        ValueError: if `out` lies inside one of several runs, or nothing has the quantity.
    """
    collection = load(source)
    for run in collection.runs:
        inside = run.folder is not None and out.resolve().is_relative_to(run.folder.resolve())
        if inside and run.folder != source:  # a run by itself may hold its report
            raise ValueError(f"{out} lies in the run {run.folder}: choose another --out.")
    datasets = group_runs(collection.runs)
    if sort:
        datasets = [_sorted(part, sort) for part in datasets]
    out.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(source, out) if links and source.is_dir() else None
    pictures = dict(collection.pictures)
    parts, measured = [], []
    for number, part in enumerate(datasets):
        prefix = f"{number}_" if len(datasets) > 1 else ""
        if source.is_dir():
            pictures[part.dataset] = figures.draw(out, prefix, part.variants)
        found = numbers(part)
        content = _part(part, found, pictures.get(part.dataset, figures.NONE), base)
        for name, table in {"headline": content["headline"], **content["sections"]}.items():
            (out / f"{prefix}{name}.tex").write_text(render.latex_table(table))
        parts.append(content)
        measured.append(found.table)
    document = {
        "title": f"Runs on {', '.join(part.dataset for part in datasets)}",
        "paper": paper.LINK,
        "problems": collection.problems,
        "num_samples": figures.NUM_SAMPLES,
        "parts": parts,
    }
    (out / "report.md").write_text(render.to_markdown("report.jinja", **document))
    (out / "report.html").write_text(render.to_html("report.jinja", out, **document))
    _write_csv(out, datasets, pd.concat(measured))
    write_json(out / "summary.json", to_summary(collection._replace(pictures=pictures)))
