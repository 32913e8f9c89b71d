"""The tables of a report: numbers by row, and the runs behind them; as CSV too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.collect import Run
from launch.page import Cell, Link, Table
from launch.paper import Beside, beside
from launch.pictures import finite_windows
from launch.rows import Group, Row, states
from launch.tables import Section, sections, short_commit

# What the first table shows, and which end of it is the better one; the rest is folded away.
HEADLINE = {
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


def number_table(
    rows: Sequence[Row], parts: Sequence[tuple[Section, str]], with_states: bool
) -> Table:
    """Rows down, quantities across, each followed by the paper's column where it has one.

    In a headline column of rows that may be compared, the best mean is set in bold.
    """
    beside_all = {part.name: [paper_cells(row, part) for row in rows] for part, _ in parts}
    head = ["row", *(["runs"] if with_states else [])]
    columns: list[list[Cell]] = [[Cell(row.label) for row in rows]]
    if not with_states:  # many columns: what holds for a whole row is said once
        columns = [[Cell(row.label, _row_notes(parts, i)) for i, row in enumerate(rows)]]
    if with_states:
        columns.append([Cell(states(row)) for row in rows])
    for part, quantity in parts:
        head.append(f"{quantity} ({part.name})" if with_states else quantity)
        values = [own.get(quantity) for own in part.values]
        means = [value.mean for value in values if value is not None and value.mean is not None]
        better = HEADLINE.get((part.name, quantity)) if with_states else None
        comparable = not any(
            note.startswith("not") for value in values if value for note in value.notes
        )
        best = better(means) if better and len(means) > 1 and comparable else None
        columns.append(
            [
                Cell(_instead(row), muted=True)
                if value is None
                else Cell(
                    value.text,
                    value.notes if with_states else (),
                    strong=best is not None and value.mean == best,
                )
                for row, value in zip(rows, values, strict=True)
            ]
        )
        papers = [own.get(quantity) for own in beside_all[part.name]]
        headings = dict.fromkeys(cell.heading for cell in papers if cell is not None)
        if headings:
            head.append(" / ".join(headings))
            columns.append([Cell(c.cell.text if c else "–", muted=True) for c in papers])
    table_rows = tuple(zip(*columns, strict=True))
    return Table(tuple(head), table_rows, numbers=2 if with_states else 1)


def _row_notes(parts: Sequence[tuple[Section, str]], row: int) -> tuple[str, ...]:
    every = (part.values[row].get(quantity) for part, quantity in parts)
    return tuple(dict.fromkeys(note for value in every if value for note in value.notes))


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
            Link(Path(name).name, f"{base}/{run.place}/{name}")
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
