"""The tables of a report: numbers by variant, and the runs behind them."""

import posixpath
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd

from experiments.console import format_duration
from experiments.reports.render import Cell, Link, Table, by_columns
from experiments.reports.variants import DatasetRuns, Variant
from experiments.workdir.run import Run

# What the first table shows, and which end of it is the better one; the rest is folded away.
HEADLINE: dict[tuple[str, str], Callable[[Any], float]] = {
    ("samples", "fid_train"): min,
    ("samples", "fd_train"): min,
    ("samples", "is"): max,
    ("samples", "classifier_score"): max,
    ("bpd", "bits_per_dim"): min,
    ("bpd_continuous", "bits_per_dim"): min,
    ("elbo", "bits_per_dim"): min,
    ("latent_bound", "bits_per_dim"): min,
    ("bpd_fast", "bits_per_dim_estimate"): min,
}
SAMPLES = "samples/samples.png"
# What a person may want to open, relative to the run.
FILES = (
    *(SAMPLES, "samples/progress.png", "rate_distortion.png", "bound.csv"),
    *("chain.png", "chain.csv", "metrics.jsonl", "results.json", "train.log"),
)
RUN_COLUMNS = (
    *("data", "row", "run", "seed", "state", "step", "num_steps", "loss", "message"),
    *("images_per_second", "training_hours", "device_hours", "commit", "hardware", "date"),
)
Columns = list[tuple[str, list[Cell]]]


def reached(run: Run) -> str:
    """As "step 400 of 3,000, loss 0.031", the last that was in order."""
    if "step" not in run.last_window:
        return ""
    of = f" of {run.num_steps:,}" if run.num_steps else ""
    return f"step {run.last_window['step']:,}{of}, loss {run.last_window['loss']:.4g}"


def _links(run: Run, base: str | None, **names: str) -> tuple[Link, ...]:
    """Links to files of a run: word -> file, relative to the run; those that exist."""
    return tuple(
        Link(word, quote(posixpath.join(base, run.place, name)))
        for word, name in names.items()
        if base is not None and run.folder is not None and (run.folder / name).is_file()
    )


def _best(column: pd.DataFrame, better: Callable[[Any], float]) -> float | None:
    """The best mean, where all rows may be compared and averaged and not all are equal."""
    means = column["mean"].dropna()
    odd = any(note.startswith("not ") for notes in column["notes"] for note in notes)
    return None if means.nunique() < 2 or odd else better(means)


def _instead(variant: Variant) -> str:
    """What stands in place of a number that no run of the variant has."""
    kinds = {run.state for run in variant.runs}
    return kinds.pop() if len(kinds) == 1 and kinds != {"finished"} else "–"


def _columns(
    variants: Sequence[Variant], column: pd.DataFrame, head: str, headline: bool
) -> Columns:
    """A quantity, and the paper's numbers beside it where it has any.

    Args:
        column: the quantity's lines of `Numbers.table`, one a variant.
        head: what stands above it.
        headline: whether to mark the best, and what holds for single values.
    """
    key = (column["section"].iloc[0], column["quantity"].iloc[0])
    best = _best(column, HEADLINE[key]) if headline else None
    cells = [
        Cell(line.text, line.notes if headline else (), strong=line.mean == best is not None)
        if line.seeds
        else Cell(_instead(variant), muted=True)
        for variant, line in zip(variants, column.itertuples(), strict=True)
    ]
    headings = [heading for heading in column["paper_heading"].unique() if heading]
    papers = [Cell(text or "–", muted=True) for text in column["paper"]]
    return [(head, cells), *([(" / ".join(headings), papers)] if headings else [])]


def headline_table(part: DatasetRuns, table: pd.DataFrame, base: str | None) -> Table:
    """Rows down, their runs and the quantities that matter most across.

    The best mean of a column is set in bold where the rows may be compared.

    Args:
        table: of `Numbers`.
        base: the way to the runs' files; None leaves the links out.
    """
    columns: Columns = [
        ("row", [Cell(variant.label) for variant in part.variants]),
        ("runs", [Cell(variant.states) for variant in part.variants]),
    ]
    if base is not None:
        pictures = [
            [_links(run, base, **{str(run.seed): SAMPLES}) for run in variant.runs]
            for variant in part.variants
        ]
        columns.append(("samples of seed", [Cell(links=sum(links, ())) for links in pictures]))
    words = len(columns)
    for (section, quantity), column in table.groupby(["section", "quantity"], sort=False):
        if (section, quantity) in HEADLINE:
            columns += _columns(part.variants, column, f"{quantity} ({section})", headline=True)
    return by_columns(columns, numbers=words)


def section_table(part: DatasetRuns, section: pd.DataFrame) -> Table:
    """Rows down, all quantities of a section across; what holds for a row is noted at its label."""
    notes = section.groupby("row", sort=False)["notes"].sum()
    labels = [Cell(v.label, tuple(dict.fromkeys(notes[v.label]))) for v in part.variants]
    columns: Columns = [("row", labels)]
    for quantity, column in section.groupby("quantity", sort=False):
        columns += _columns(part.variants, column, str(quantity), headline=False)
    return by_columns(columns, numbers=1)


def cost(run: Run) -> tuple[str, str, str]:
    """Images a second, the time of training, and the hours of devices; "" where not known."""
    speed, seconds, hours = run.images_per_second, run.training_seconds, run.device_hours
    return (
        "" if speed is None else f"{speed:,.4g}",
        "" if seconds is None else format_duration(seconds),
        "" if hours is None else f"{hours:.2g}",
    )


def run_table(part: DatasetRuns, base: str | None) -> Table:
    """One line a run; with links to its files unless `base`, the way to them, is None."""
    files = {name.rpartition("/")[2]: name for name in FILES}
    head = (
        *("run", "state", "reached", "images/s", "training", "device hours"),
        *("commit", "hardware", "date"),
    )
    texts = [
        (
            run.place or run.name,
            run.state,
            reached(run),
            *cost(run),
            run.commit,
            run.hardware,
            run.date,
        )
        for run in part.runs
    ]
    columns = [(name, list(map(Cell, text))) for name, *text in zip(head, *texts, strict=True)]
    if base is not None:
        columns.append(("files", [Cell(links=_links(run, base, **files)) for run in part.runs]))
    return by_columns(columns, numbers=len(columns))


def run_lines(part: DatasetRuns) -> pd.DataFrame:
    """Lines of runs.csv: one for every run."""
    lines = [
        (
            *(part.dataset, variant.label, run.place, run.seed, run.state),
            *(run.last_window.get("step"), run.num_steps, run.last_window.get("loss"), run.message),
            run.images_per_second,
            None if run.training_seconds is None else run.training_seconds / 3600,
            run.device_hours,
            *(run.origin.get("commit"), run.hardware, run.origin.get("date")),
        )
        for variant in part.variants
        for run in variant.runs
    ]
    return pd.DataFrame(lines, columns=list(RUN_COLUMNS), dtype=object)
