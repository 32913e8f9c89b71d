"""What a report says: captions, warnings, tables and pictures, in their order."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.files.atomic import write_json
from experiments.reports import figures, render, tables
from experiments.reports.averages import Section, sections
from experiments.reports.collect import Collection, Run, collect, to_summary
from experiments.reports.paper import INCEPTION
from experiments.reports.render import (
    Block,
    Folded,
    Heading,
    Items,
    Link,
    Log,
    Paragraph,
    Picture,
    Strips,
)
from experiments.reports.rows import Group, group
from experiments.reports.tables import (
    HEADLINE,
    full_table,
    headline_table,
    paper_cells,
    reached,
    run_table,
)
from experiments.workdir.protocols import written

PAPER = Link("Ho et al. 2020", "https://arxiv.org/abs/2006.11239")


def title(groups: Sequence[Group]) -> str:
    """The page's own."""
    return f"Runs on {', '.join(part.dataset for part in groups)}"


def _caption(part: Group) -> str:
    """Data set, seeds and steps of all rows."""
    runs = [run for row in part.rows for run in row.runs]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    steps = sorted({run.num_steps for run in runs if run.num_steps})
    settings = dict.fromkeys(
        f"{name}={value}" for run in runs for name, value in run.settings.items()
    )
    words = [
        f"Data: {part.dataset}. {len(part.rows)} rows, {len(runs)} runs, seeds "
        f"{', '.join(map(str, seeds))}.",
        f"Trained for {' or '.join(f'{n:,}' for n in steps)} steps." if steps else "",
        f"Settings of the sweep: {', '.join(settings)}." if settings else "",
        "± is the sample standard deviation over seeds; a number without it is of one seed. Bold: "
        "the best mean of a column.",
    ]
    return " ".join(filter(None, words))


def _section_caption(section: Section) -> str:
    """The protocol that all values share."""
    fields = ", ".join(f"{name} = {written(value)}" for name, value in section.protocol.items())
    extractor = section.protocol.get("extractor", INCEPTION)
    warning = (
        "" if extractor == INCEPTION else f" Features of {extractor}: not comparable with FID."
    )
    return f"Protocol of all: {fields}.{warning}"


def _not_comparable(part: Group, found: Sequence[Section]) -> Iterator[str]:
    """What stands against reading a row beside the paper's."""
    extractors = {
        str(run.sections[s.name]["protocol"]["extractor"])
        for s in found
        for row in part.rows
        for run in row.runs
        if "extractor" in run.sections.get(s.name, {}).get("protocol", {})
    }
    for name in sorted(extractors - {INCEPTION}):
        yield (
            f"Sample metrics are of the features of {name}, a classifier trained on this data set "
            "(fd_, kd_, classifier_score): not comparable with FID, KID and IS."
        )
    shown = {b.heading for s in found for row in part.rows for b in paper_cells(row, s).values()}
    if shown and part.dataset != "cifar10":
        yield (
            "The paper's numbers beside them are of other data (as their columns say), so they "
            "show which rows the paper found better, not what to reach here."
        )


def _merged(found: Sequence[Section]) -> list[str]:
    """The warnings of all sections; what holds for several is said once."""
    where: dict[str, list[str]] = {}
    for section in found:
        for warning in section.warnings:
            where.setdefault(warning, []).append(section.name)
    return [f"{', '.join(names)}: {warning}" for warning, names in where.items()]


def _seeds(runs: Sequence[Run]) -> str:
    return f"seed {', '.join(str(run.seed) for run in runs)}"


def _fate(run: Run) -> str:
    """What became of a run that did not finish, as a sentence without its name."""
    step = f" at step {run.train['step']:,}" if "step" in run.train else ""
    tries = f" after {run.attempts} attempts" if run.attempts > 1 else ""
    why = f": {run.message}" if run.message else ""
    last = f" (last in order: {reached(run)})" if reached(run) else ""
    return f"{run.state}{step}{tries}{why}{last}"


def _missing(part: Group, found: Sequence[Section]) -> list[Block]:
    """What is not there, and why."""
    items, logs = [], []
    for row in part.rows:
        fates: dict[str, list[Run]] = {}
        for run in row.runs:
            if run.state != "finished":
                fates.setdefault(_fate(run), []).append(run)
            if run.log_tail:
                logs.append(Log(f"End of the log of {run.name}:", run.log_tail))
        items += [f"{row.label}, {_seeds(runs)}: {fate}" for fate, runs in fates.items()]
        done = [run for run in row.runs if run.state == "finished"]
        for section in found:
            lacking = [run for run in done if section.name not in run.sections]
            if lacking:
                items.append(f"{row.label}, {_seeds(lacking)}: finished without {section.name}")
    if not items:
        return []
    return [Heading("Missing, and why", 3), Items(tuple(items)), *logs]


# --- The page ---


def _strips(part: Group, out: Path, prefix: str) -> list[Block]:
    strips = figures.sample_strips(out, prefix, part.rows)
    if strips is None:
        return [Paragraph("No run has samples yet.")]
    rows = tuple(
        (label, what if isinstance(what, str) else Picture(what.name, f"samples of {label}"))
        for label, what in strips.pictures.items()
    )
    chains = {run.sample.get("num_steps") for row in part.rows for run in row.runs if run.sample}
    unlike = len(chains) > 1
    text = (
        f"The first {figures.NUM_SAMPLES} samples of seed {strips.seed} in every row, none left "
        "out. Sample i is drawn with the same noise in every row"
        + (" whose chain has the same number of steps." if unlike else ".")
    )
    return [Paragraph(text), Strips(rows)]


def _curves(part: Group, out: Path, prefix: str, problems: list[str]) -> list[Block]:
    path = out / f"{prefix}curves.png"
    problems += figures.learning_curves(path, part.rows)
    if not path.is_file():
        return [Paragraph("No run has a log yet.")]
    text = "Rows have unlike losses: compare seeds within a panel, not panels. A cross: diverged."
    return [Paragraph(text), Picture(path.name, f"training loss of the rows on {part.dataset}")]


def _group(
    part: Group, out: Path, base: str | None, prefix: str, problems: list[str]
) -> list[Block]:
    """Everything about one data set."""
    found = sections(part.rows)
    warnings = (*part.warnings, *_merged(found))
    first = [
        (section, quantity)
        for section in found
        for quantity in section.quantities
        if (section.name, quantity) in HEADLINE
    ]
    blocks: list[Block] = [Heading(part.dataset), Paragraph(_caption(part))]
    blocks += [Paragraph(text) for text in _not_comparable(part, found)]
    if warnings:
        blocks += [Heading("Warnings", 3), Items(warnings, warning=True)]
    blocks.append(headline_table(part.rows, first, base))
    blocks += _missing(part, found)
    blocks += [Heading("Samples at equal noise", 3), *_strips(part, out, prefix)]
    blocks += [Heading("Learning curves", 3), *_curves(part, out, prefix, problems)]
    for section in found:
        table = full_table(part.rows, section)
        caption = Paragraph(_section_caption(section))
        blocks.append(Folded(f"All numbers of {section.name}", (caption, table)))
    blocks += [Folded("Runs", (run_table(part.rows, base),))]
    return blocks


def document(
    collection: Collection, groups: Sequence[Group], out: Path, base: str | None
) -> list[Block]:
    """The whole report; draws its pictures into `out`.

    Args:
        base: the folder of the runs as seen from `out`; None leaves out the links.
    """
    problems = list(collection.problems)
    blocks: list[Block] = []
    for number, part in enumerate(groups):
        prefix = f"{number}_" if len(groups) > 1 else ""
        blocks += _group(part, out, base, prefix, problems)
    runs = [run for part in groups for row in part.rows for run in row.runs]
    done = sum(run.state == "finished" for run in runs)
    intro = f"{done} of {len(runs)} runs finished. Columns that begin with paper are as printed in"
    start: list[Block] = [Heading(title(groups), 1), Paragraph(intro, (PAPER,))]
    if len(groups) > 1:
        names = ", ".join(part.dataset for part in groups)
        text = f"The runs are of {len(groups)} data sets ({names}), which have tables of their own."
        start.append(Items((text,), warning=True))
    if problems:
        start += [Heading("Could not be read", 2), Items(tuple(problems), warning=True)]
    return start + blocks


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])


def write(workdir: Path, out: Path, links: bool = True) -> None:
    """Writes the report of the runs below `workdir` into the folder `out`.

    Raises:
        FileNotFoundError: if there are no runs.
        ValueError: if `out` lies inside a run.
    """
    collection = collect(workdir)
    above = (out.resolve(), *out.resolve().parents)
    for run in collection.runs:
        if run.folder is not None and run.folder.resolve() in above:
            raise ValueError(f"{out} lies in the run {run.folder}: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    groups = group(collection.runs)
    base = os.path.relpath(workdir, out) if links else None
    blocks = document(collection, groups, out, base)
    (out / "report.md").write_text(render.to_markdown(blocks))
    (out / "report.html").write_text(render.to_html(title(groups), blocks, out))
    _write_csv(out / "numbers.csv", tables.NUMBERS, tables.numbers(groups))
    _write_csv(out / "runs.csv", tables.RUNS, tables.run_lines(groups))
    write_json(out / "summary.json", to_summary(collection))
