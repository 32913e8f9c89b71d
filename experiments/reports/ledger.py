"""Cells of the paper's Tables 1 to 4, each with its command and what was measured for it.

A number counts as a cell's only if its run trained the very model of the row, for as many steps,
and was evaluated by the paper's protocol; everything else is listed apart, with what differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.configs import published
from experiments.configs.formulations import FORMULATIONS
from experiments.configs.published import PaperRow, PaperTable, SamplingRow, SamplingTable
from experiments.reports import paper, render
from experiments.reports.averages import average, describe, numbers, why_not_averaged
from experiments.reports.collect import load
from experiments.reports.render import Cell, Table
from experiments.reports.variants import DatasetRuns, Variant, dataset_of, group_runs
from experiments.workdir.protocols import renewed_protocol
from experiments.workdir.run import Run

NOT_MEASURED = "not measured"
HEAD = ("row", "quantity", "config", "paper", "ours", "seeds", "hardware", "date", "commit")
HEAD_APART = (
    *("data", "row", "runs", "quantity", "paper, on its data", "ours", "steps"),
    *("seeds", "hardware", "date", "commit", "what differs"),
)


def _cells(*texts: str) -> tuple[Cell, ...]:
    return tuple(map(Cell, texts))


def _facts(runs: Sequence[Run]) -> tuple[Cell, ...]:
    """Seeds, hardware, dates and commits, each once."""
    found = [(str(run.seed), run.hardware, run.date, run.commit) for run in runs]
    return _cells(*(", ".join(filter(None, sorted(set(c)))) for c in zip(*found, strict=True)))


def load_runs(names: Sequence[str]) -> list[Run]:
    """The runs of summaries and folders."""
    paths = [Path(name).expanduser() for name in names]
    return [run._replace(place=f"{path}/{run.place}") for path in paths for run in load(path).runs]


# --- What counts as a cell's number ---


def _counted(run: Run, row: PaperRow, name: str) -> float | None:
    """What the run has for a column, where it was measured by the paper's protocol."""
    column = published.COLUMNS[name]
    section = run.sections.get(column.section)
    if section is None or paper.protocol_deviations(run, column):
        return None
    point, quantity = paper.reverse_time(row), column.quantities[0]
    if point is not None:
        return run.bound.get(point, {}).get(quantity)
    return float(section.values[quantity]["value"]) if quantity in section.values else None


def _ours(runs: Sequence[Run], row: PaperRow, name: str) -> tuple[Cell, ...]:
    """The mean over seeds for one cell of the paper, and the facts of the runs behind it."""
    its = [run for run in runs if paper.is_row(run, row)]
    found: dict[tuple[int | None, float], Run] = {}  # a copy of a run counts once
    for run in its:
        value = _counted(run, row, name)
        if value is not None:
            found.setdefault((run.seed, value), run)
    ended = tuple(run for run in its if run.state == "diverged")
    if not found and not ended:
        return _cells(NOT_MEASURED, *[""] * 4)
    if not found:
        return (Cell(Variant("", ended).states, strong=True), *_facts(ended))
    having = tuple(found.values())
    unlike = [why_not_averaged(having, published.COLUMNS[name].section)]
    if len({seed for seed, _ in found}) < len(found):
        unlike.insert(0, "a seed is there more than once")
    mean = average([v for _, v in found], "; ".join(filter(None, unlike)), len(found))
    lost = (f"{len(ended)} of {len(ended) + len(having)} runs diverged",) if ended else ()
    return (Cell(mean.text, (*mean.notes, *lost), strong=True), *_facts(having))


# --- The paper's tables ---


def command(table: PaperTable, row: PaperRow) -> str:
    """What trains the model of a row and measures the table's columns of it."""
    config = f"experiments/configs/{row.config}.py" + (f":{row.ablation}" if row.ablation else "")
    workdir = f"runs/{row.config}" + (f"-{row.ablation}" if row.ablation else "")
    metrics = ",".join(sorted({published.COLUMNS[name].section for name in table.columns}))
    fields = [f"--config.evaluate.metrics={metrics}"]
    if paper.expected_training(row.config, row.ablation)["data.name"] == "image_folder":
        fields.insert(0, "--config.data.path=IMAGES")
    if "samples" in metrics:
        fields.append("--config.evaluate.protocol=paper")
    if "bpd" in metrics:
        fields.append("--config.evaluate.num_images=0")
    start = f"python -m experiments.main --config={config} --workdir={workdir}"
    return " ".join([start, *fields])


def _commands(table: PaperTable) -> list[str]:
    """The commands of a table; the bound of the train split is measured in a copy of the run."""
    commands = list(dict.fromkeys(command(table, row) for row in table.rows))
    if "bits_per_dim_train" not in table.columns:
        return commands
    on_train = []
    for line in commands:
        workdir = line.partition("--workdir=")[2].partition(" ")[0]
        on_train += [
            f"cp -r {workdir} {workdir}-train",
            f"python -m experiments.main --mode=evaluate --workdir={workdir}-train "
            "--config.evaluate.metrics=bpd --config.evaluate.split=train "
            "--config.evaluate.num_images=0",
        ]
    return commands + on_train


def _own_table(runs: Sequence[Run], table: PaperTable) -> Table:
    """The paper's cells and ours."""
    lines = []
    for row in table.rows:
        config = f"{row.config}:{row.ablation}" if row.ablation else row.config
        for name, cell in row.cells.items():
            theirs = _cells(row.label, table.columns[name], config, cell.text)
            lines.append((*theirs, *_ours(runs, row, name)))
    return Table(HEAD, tuple(lines), numbers=len(HEAD))


def _quoted(table: PaperTable) -> Table:
    """What the paper quotes from other work, one line for each model."""
    columns = [name for name in table.columns if any(name in row.cells for row in table.quoted)]
    lines = [
        _cells(row.label, *(row.cells[name].text if name in row.cells else "" for name in columns))
        for row in table.quoted
    ]
    head = ("quoted from other work", *(table.columns[name] for name in columns))
    return Table(head, tuple(lines))


# --- Samplers ---


def _sampled(run: Run, row: SamplingRow, steps: int) -> bool:
    """Whether the run's samples were drawn so, of a CIFAR-10 model, and judged as published."""
    section = run.sections.get("samples")
    if section is None or run.training.get("data.name") != "cifar10":
        return False
    found = renewed_protocol(section.protocol)
    wanted = {
        **published.COLUMNS["fid_train"].protocol,
        **published.COMMON,
        "spacing": {"name": row.spacing},
        "num_steps": steps,
    }
    if row.variance is not None:
        wanted["variance"] = row.variance
    same = all(found.get(name) == value for name, value in wanted.items() if name != "sampler")
    defaults = {"eta": 0.0} if row.sampler["name"] == "ddim" else {}
    return same and defaults | found["sampler"] == defaults | dict(row.sampler)


def _sampling(runs: Sequence[Run], table: SamplingTable) -> Table:
    """FID against steps, published and ours."""
    head = ("sampler", "spacing", "steps", "FID, published", "FID, ours", "seeds", "hardware")
    lines = []
    for row in table.rows:
        for steps, text in row.fid.items():
            having = [run for run in runs if _sampled(run, row, steps)]
            values = [float(run.sections["samples"].values["fid_train"]["value"]) for run in having]
            ours = average(values, "", len(values)).text if values else NOT_MEASURED
            facts = _facts(having)[:2] if having else _cells("", "")
            cell = Cell(ours, strong=bool(values))
            lines.append((*_cells(row.label, row.spacing, str(steps), text), cell, *facts))
    return Table(head, tuple(lines), numbers=2)


# --- Continuous time ---


def _formulations(runs: Sequence[Run]) -> Table:
    """Published numbers of formulations in continuous time, and ours of the same config."""
    head = (
        *("formulation", "data", "config", "quantity", "published", "source"),
        *("ours", "seeds", "hardware"),
    )
    lines = []
    for row in FORMULATIONS:
        model = PaperRow(row.label, row.config, row.ablation, {})
        having = [run for run in runs if row.config and _same(run, model, row.section)]
        values = [float(run.sections[row.section].values[row.quantity]["value"]) for run in having]
        ours = average(values, "", len(values)).text if values else NOT_MEASURED
        config = f"{row.config}:{row.ablation}" if row.config else "–"
        theirs = _cells(row.label, row.dataset, config, row.heading, row.text, row.source)
        facts = _facts(having)[:2] if having else _cells("", "")
        lines.append((*theirs, Cell(ours, strong=bool(values)), *facts))
    return Table(head, tuple(lines), numbers=len(head))


def _same(run: Run, model: PaperRow, section: str) -> bool:
    """Whether the run trained this model to its end and measured the section on all of the data."""
    if section not in run.sections or not paper.is_row(run, model):
        return False
    found = renewed_protocol(run.sections[section].protocol)
    wanted = {**published.COMMON, "checkpoint_step": run.training.get("train.num_steps")}
    if section == "samples":
        wanted |= {"extractor": published.INCEPTION, "protocol": "paper"}
    else:
        wanted |= {"split": "test", "num_images": found.get("split_images")}
    return all(found.get(name) == value for name, value in wanted.items())


# --- What is no cell's number ---


def _why_not(run: Run, about: Sequence[PaperRow], section: str, quantity: str) -> str | None:
    """What keeps the number out of the paper's cells; None where it stands in one."""
    name = paper.column_of(run, section, quantity)
    column = published.COLUMNS[name] if name else None
    own = column is not None and column.section == section
    for row in about if own else ():
        if paper.is_row(run, row) and name in row.cells and _counted(run, row, name or ""):
            return None
    row = about[0]
    theirs = paper.expected_training(row.config, row.ablation)
    if dataset_of(run.training) != dataset_of(theirs):
        return "other data"
    unlike = paper.deviations(run, row)
    if column is not None and own:
        unlike |= paper.protocol_deviations(run, column)
    estimate = ["an estimate"] if column is not None and not own else []
    return "; ".join(filter(None, [*estimate, describe(unlike)]))


def _apart(dataset: str, variant: Variant) -> Iterator[tuple[Cell, ...]]:
    """Numbers of the paper's ablations that are not its cells: other data, or other settings."""
    rows = [row for table in published.TABLES.values() for row in table.rows]
    about = [row for row in rows if paper.is_about(variant.runs[0], row)]
    if not about:
        return
    label = _cells(dataset, variant.label, variant.states)
    steps = ", ".join(sorted({f"{run.num_steps:,}" for run in variant.runs if run.num_steps}))
    found = numbers(DatasetRuns(dataset, (variant,))).table
    lines = 0
    for line in found[found["paper_heading"] != ""].itertuples():
        having = [run for run in variant.runs if line.section in run.sections]
        why = _why_not(having[0], about, line.section, line.quantity)
        if why is not None:
            lines += 1
            ours = Cell(line.text, line.notes, strong=True)
            cells = (*_cells(line.quantity, line.paper), ours, Cell(steps))
            yield (*label, *cells, *_facts(having), Cell(why))
    if not lines and any(run.state == "diverged" for run in variant.runs):
        why = _why_not(variant.runs[0], about, "", "") or ""
        yield (*label, *_cells("", "", "", steps), *_facts(variant.runs), Cell(why))


def document(runs: Sequence[Run]) -> str:
    """The whole ledger, as Markdown."""
    variants = [(part.dataset, v) for part in group_runs(runs) for v in part.variants]
    lines = tuple(line for dataset, variant in variants for line in _apart(dataset, variant))
    return render.to_markdown(
        "ledger.jinja",
        paper=paper.LINK,
        tables=[
            (table, _own_table(runs, table), _commands(table), _quoted(table))
            for table in published.TABLES.values()
        ],
        sampling=[(table, _sampling(runs, table)) for table in published.SAMPLING],
        formulations=_formulations(runs),
        apart=Table(HEAD_APART, lines, numbers=len(HEAD_APART)) if lines else None,
    )
