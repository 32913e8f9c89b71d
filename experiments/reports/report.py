"""A report of runs: templates/report.jinja filled with their tables, warnings and pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.configs.published import INCEPTION
from experiments.files.atomic import write_json
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


def _missing(part: DatasetRuns, sections: Sequence[str]) -> list[str]:
    """What is not there, and why."""
    items = []
    for variant in part.variants:
        fates: dict[str, list[str]] = {}
        for run in variant.runs:
            words = [f"finished without {name}" for name in sections if name not in run.sections]
            for fate in words if run.state == "finished" else [_fate(run)]:
                fates.setdefault(fate, []).append(str(run.seed))
        items += [f"{variant.label}, seed {', '.join(s)}: {fate}" for fate, s in fates.items()]
    return items


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
        "warnings": [*part.warnings, *_merged(found.warnings)],
        "headline": tables.headline_table(part, found.table, base),
        "missing": _missing(part, list(sections)),
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


def write(source: Path, out: Path, links: bool = True) -> None:
    """Writes the report of the runs below `source` into the folder `out`.

    Args:
        source: a folder of runs, or the summary.json of a report, whose pictures lie in `out`.
        out: is made where there is none.
        links: whether the pages lead to the files of the runs.

    Raises:
        ValueError: if `out` lies inside a run.
    """
    collection = load(source)
    for run in collection.runs:
        if run.folder is not None and out.resolve().is_relative_to(run.folder.resolve()):
            raise ValueError(f"{out} lies in the run {run.folder}: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    datasets = group_runs(collection.runs)
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
