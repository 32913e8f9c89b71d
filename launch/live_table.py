"""The state of all runs of a sweep: a live table on a terminal, lines of what changed elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.console import format_duration
from experiments.workdir.metrics_file import Progress
from launch.plan import Run
from launch.status import Status

COLORS = MappingProxyType(
    {"finished": "green", "diverged": "magenta", "failed": "red", "running": "cyan"}
)
SAY_SECONDS = 60.0  # between summaries where there is no terminal


class Row(NamedTuple):
    """What is shown of one run."""

    run: Run
    status: Status
    progress: Progress


def summary(rows: Sequence[Row]) -> str:
    """How many runs are in which state."""
    counts = Counter(row.status.state for row in rows)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _cells(row: Row) -> list[str]:
    step, loss, eta = row.progress
    state = row.status.state
    if state == "running" and step >= row.run.num_steps:
        state = "evaluating"
    return [
        row.run.name,
        state,
        f"{step:,}/{row.run.num_steps:,}",
        "" if loss is None else f"{loss:.4f}",
        format_duration(eta) if state == "running" and eta is not None else "",
        row.status.message,
    ]


def table(rows: Sequence[Row]) -> Table:
    """One line a run: state, step, loss, time left of the training, why it ended."""
    result = Table("run", "state", "step", "loss", "ETA", "", title=summary(rows))
    for row in rows:
        result.add_row(*_cells(row), style=COLORS.get(row.status.state))
    return result


class Board:
    """Shows the rows while entered."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=2)
        self._states: Mapping[str, str] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line, above the table where there is one."""
        self._console.print(text, markup=False)

    def show(self, rows: Sequence[Row]) -> None:
        """Brings what is shown up to date."""
        if self._console.is_terminal:
            self._live.update(table(rows))
            return
        states = {row.run.name: row.status.state for row in rows}
        for row in rows:
            if states[row.run.name] != self._states.get(row.run.name, "waiting"):
                name, state, *rest = (cell for cell in _cells(row) if cell)
                self.say(f"{name}: {state} ({', '.join(rest)})")
        self._states = states
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            self.say(summary(rows))
            for row in rows:
                if row.status.state == "running":
                    name, _, *rest = (cell for cell in _cells(row) if cell)
                    self.say(f"  {name}: {', '.join(rest)}")
