"""The tables of a report: numbers by row, and the runs behind them; as CSV too."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.reports.averages import Section, Value, sections, short_commit
from experiments.reports.collect import Run
from experiments.reports.figures import finite_windows
from experiments.reports.paper import Beside, beside
from experiments.reports.render import Cell, Link, Table
from experiments.reports.rows import Group, Row, states

# What the first table shows, and which end of it is the better one; the rest is folded away.
HEADLINE: dict[tuple[str, str], Callable[[list[float]], float]] = {
    ("samples", "fid_train"): min,
    ("samples", "fd_train"): min,
    ("samples", "is"): max,
    ("samples", "classifier_score"): max,
    ("bpd", "bits_per_dim"): min,
    ("bpd_fast", "bits_per_dim_estimate"): min,
}
# What a person may want to open, relative to the run.
FILES = (
    *("samples/samples.png", "samples/progress.png", "rate_distortion.png", "bound.csv"),
    *("chain.png", "chain.csv", "metrics.jsonl", "results.json", "train.log"),
)
NUMBERS = (
    *("data", "row", "section", "quantity", "mean", "deviation", "seeds", "runs", "text"),
    *("paper", "paper_heading", "notes"),
)
RUNS = (
    *("data", "row", "run", "seed", "state", "step", "num_steps", "loss", "message"),
    *("commit", "hardware", "date"),
)


# --- Facts about rows ---


def paper_cells(row: Row, section: Section) -> dict[str, Beside]:
    """Quantity -> the paper's cell beside it."""
    run = next((run for run in row.runs if section.name in run.sections), row.runs[0])
    found = {quantity: beside(run, section.name, quantity) for quantity in section.quantities}
    return {quantity: cell for quantity, cell in found.items() if cell is not None}


def last_loss(run: Run) -> tuple[int | None, float | None]:
    """Step and loss of the last window that was in order."""
    metrics = run.train.get("metrics") or {}
    if not metrics and run.folder is not None:
        records = finite_windows(run)
        metrics = records[-1] if records else {}
    return metrics.get("step"), metrics.get("loss")


def origin(run: Run) -> Mapping[str, Any]:
    """The provenance of the run's first numbers."""
    return next((section["provenance"] for section in run.sections.values()), {})


def hardware(run: Run) -> str:
    """As "1 x cpu (AMD EPYC, 2 cores)"."""
    found = origin(run).get("hardware", {})
    return f"{found['devices']} ({found.get('host', '')})" if "devices" in found else ""


def reached(run: Run) -> str:
    """As "step 400 of 3,000, loss 0.031", the last that was in order."""
    step, loss = last_loss(run)
    if step is None:
        return ""
    of = f" of {run.num_steps:,}" if run.num_steps else ""
    return f"step {step:,}{of}, loss {loss:.4g}"


# --- Tables ---


Part = tuple[Section, str]  # a section and one of its quantities
Columns = list[tuple[str, list[Cell]]]


def headline_table(rows: Sequence[Row], parts: Sequence[Part], base: str | None) -> Table:
    """Rows down, their runs and the quantities that matter most across.

    The best mean of a column is set in bold where the rows may be compared.
    """

    def pictures(row: Row) -> tuple[Link, ...]:
        name = "samples/samples.png"
        return tuple(
            Link(str(run.seed), quote(f"{base}/{run.place}/{name}"))
            for run in row.runs
            if base is not None and run.folder is not None and (run.folder / name).is_file()
        )

    columns: Columns = [
        ("row", [Cell(row.label) for row in rows]),
        ("runs", [Cell(states(row)) for row in rows]),
    ]
    if base is not None:
        columns.append(("samples of seed", [Cell(links=pictures(row)) for row in rows]))
    words = len(columns)
    for part, quantity in parts:
        values = [own.get(quantity) for own in part.values]
        best = _best(values, HEADLINE[part.name, quantity])
        cells = [
            Cell(_instead(row), muted=True)
            if value is None
            else Cell(value.text, value.notes, strong=best is not None and value.mean == best)
            for row, value in zip(rows, values, strict=True)
        ]
        columns += [(f"{quantity} ({part.name})", cells), *_paper_column(rows, part, quantity)]
    return _by_columns(columns, numbers=words)


def full_table(rows: Sequence[Row], section: Section) -> Table:
    """Rows down, all quantities of a section across; what holds for a row is noted at its label."""
    columns: Columns = [
        ("row", [Cell(row.label, _row_notes(section, i)) for i, row in enumerate(rows)])
    ]
    for quantity in section.quantities:
        values = [own.get(quantity) for own in section.values]
        cells = [
            Cell(_instead(row), muted=True) if value is None else Cell(value.text)
            for row, value in zip(rows, values, strict=True)
        ]
        columns += [(quantity, cells), *_paper_column(rows, section, quantity)]
    return _by_columns(columns, numbers=1)


def _by_columns(columns: Columns, numbers: int) -> Table:
    head, cells = zip(*columns, strict=True)
    return Table(head, tuple(zip(*cells, strict=True)), numbers)


def _best(values: Sequence[Value | None], better: Callable[[list[float]], float]) -> float | None:
    """The best mean, where all rows may be compared and averaged and not all are equal."""
    means = [value.mean for value in values if value is not None and value.mean is not None]
    notes = [note for value in values if value is not None for note in value.notes]
    if len(set(means)) < 2 or any(note.startswith("not ") for note in notes):
        return None
    return better(means)


def _paper_column(rows: Sequence[Row], section: Section, quantity: str) -> Columns:
    """The paper's cells for a quantity, where it has any."""
    papers = [paper_cells(row, section).get(quantity) for row in rows]
    headings = dict.fromkeys(found.heading for found in papers if found is not None)
    if not headings:
        return []
    cells = [Cell(found.cell.text if found else "–", muted=True) for found in papers]
    return [(" / ".join(headings), cells)]


def _row_notes(section: Section, row: int) -> tuple[str, ...]:
    notes = [note for value in section.values[row].values() for note in value.notes]
    return tuple(dict.fromkeys(notes))


def _instead(row: Row) -> str:
    """What stands in place of a number that no run of the row has."""
    kinds = {run.state for run in row.runs}
    return kinds.pop() if len(kinds) == 1 and kinds != {"finished"} else "–"


def run_table(rows: Sequence[Row], base: str | None) -> Table:
    """One line a run; with links to its files unless `base`, the way to them, is None."""

    def links(run: Run) -> tuple[Link, ...]:
        if base is None or run.folder is None:
            return ()
        folder = run.folder
        return tuple(
            Link(Path(name).name, quote(f"{base}/{run.place}/{name}"))
            for name in FILES
            if (folder / name).is_file()
        )

    lines = tuple(
        (
            Cell(run.place if run.folder else run.name),
            Cell(run.state),
            Cell(reached(run)),
            Cell(short_commit(str(origin(run).get("commit", "–")))),
            Cell(hardware(run)),
            Cell(str(origin(run).get("date", ""))[:10]),
            *((Cell(links=links(run)),) if base is not None else ()),
        )
        for row in rows
        for run in row.runs
    )
    head = ("run", "state", "reached", "commit", "hardware", "date")
    return Table((*head, "files") if base is not None else head, lines, numbers=99)


def numbers(groups: Sequence[Group]) -> list[list[Any]]:
    """Lines of numbers.csv: one for every row and quantity."""
    lines = []
    for part in groups:
        for section in sections(part.rows):
            for row, own in zip(part.rows, section.values, strict=True):
                papers = paper_cells(row, section)
                for quantity, value in own.items():
                    paper = papers.get(quantity)
                    cells = [value.mean, value.deviation, value.num_seeds, len(row.runs)]
                    lines.append(
                        [part.dataset, row.label, section.name, quantity, *cells, value.text]
                        + ([paper.cell.text, paper.heading] if paper else ["", ""])
                        + ["; ".join(value.notes)]
                    )
    return lines


def run_lines(groups: Sequence[Group]) -> list[list[Any]]:
    """Lines of runs.csv: one for every run."""
    return [
        [
            *(part.dataset, row.label, run.place, run.seed, run.state),
            *(last_loss(run)[0], run.num_steps, last_loss(run)[1], run.message),
            *(origin(run).get("commit"), hardware(run), origin(run).get("date")),
        ]
        for part in groups
        for row in part.rows
        for run in row.runs
    ]
