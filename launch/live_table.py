"""The state of all runs of a sweep: a live table on a terminal, lines of what changed elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from experiments.console import format_duration
from experiments.workdir.metrics_file import Progress
from experiments.workdir.status import Status
from launch.plan import PlannedRun

COLORS = MappingProxyType(
    {"finished": "green", "diverged": "magenta", "failed": "red", "running": "cyan"}
)
SUMMARY_SECONDS = 60.0  # between summaries where there is no terminal


class RunState(NamedTuple):
    """What is shown of one run."""

    planned: PlannedRun
    status: Status
    progress: Progress
    compiling: bool = False  # by its log


def is_compiling(folder: Path) -> bool:
    """Whether the last that the run in `folder` said is that it compiles its training step."""
    path = folder / "train.log"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        said = file.read()
    return said.rfind(b"compiling") > said.rfind(b"compiled")


def summary(runs: Sequence[RunState]) -> str:
    """How many runs are in which state."""
    counts = Counter(run.status.state for run in runs)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _texts(run: RunState) -> list[str]:
    step, loss, eta = run.progress
    state = run.status.state
    if state == "running" and step >= run.planned.num_steps:
        state = "evaluating"
    elif state == "running" and run.compiling:
        state = "compiling"
    return [
        run.planned.name,
        state,
        f"{step:,}/{run.planned.num_steps:,}",
        "" if loss is None else f"{loss:.4f}",
        format_duration(eta) if state == "running" and eta is not None else "",
        run.status.message,
    ]


def table(runs: Sequence[RunState]) -> Table:
    """One line a run: state, step, loss, time left of the training, why it ended."""
    name = Column("run", overflow="fold")  # names differ at their ends
    result = Table(name, "state", "step", "loss", "ETA", "", title=summary(runs))
    for run in runs:
        result.add_row(*_texts(run), style=COLORS.get(run.status.state))
    return result


class LiveTable:
    """Shows the runs while entered."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=2)
        self._states: Mapping[str, str] = {}
        self._last_summary = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def print_line(self, text: str) -> None:
        """One line, above the table where there is one."""
        self._console.print(text, markup=False)

    def show(self, runs: Sequence[RunState]) -> None:
        """Brings what is shown up to date."""
        if self._console.is_terminal:
            self._live.update(table(runs))
            return
        texts = {run.planned.name: _texts(run) for run in runs}
        states = {name: text[1] for name, text in texts.items()}
        for run in runs:
            if states[run.planned.name] != self._states.get(run.planned.name, "waiting"):
                name, state, *rest = (cell for cell in texts[run.planned.name] if cell)
                self.print_line(f"{name}: {state} ({', '.join(rest)})")
        self._states = states
        if time.monotonic() - self._last_summary > SUMMARY_SECONDS:
            self._last_summary = time.monotonic()
            self.print_line(summary(runs))
            for run in runs:
                if run.status.state == "running":
                    name, _, *rest = (cell for cell in _texts(run) if cell)
                    self.print_line(f"  {name}: {', '.join(rest)}")
