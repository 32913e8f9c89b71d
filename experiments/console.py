"""What a program says to people at a terminal, and how they tell it to stop."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

REPEATED = 1.0  # seconds after which a second signal means more than the first: Slurm sends two


def _processes() -> tuple[int, int]:
    """The index of this process, and how many there are."""
    import jax  # not at once: launchers say things without it

    return jax.process_index(), jax.process_count()


@contextlib.contextmanager
def stop_requested() -> Iterator[list[float]]:
    """Collects Ctrl-C and SIGTERM instead of dying of them; one more after REPEATED does kill.

    What is ignored stays so: a script starts background programs deaf to Ctrl-C. With several
    processes the cluster's own announcement is used, see `Checkpoints`.
    """
    received: list[float] = []  # when

    def handler(number: int, frame: Any) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > REPEATED:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    before: dict[int, Any] = {}
    if _processes()[1] == 1:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        untouched = (signal.SIG_IGN, None)  # None: a handler that is not Python's
        before = {number: old for number, old in before.items() if old not in untouched}
        for number in before:
            signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def format_duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def log(text: str) -> None:
    """One line on standard output, from the main process only."""
    if _processes()[0] == 0:
        print(text, flush=True)


def track(items: Sequence[Any], label: str, every_seconds: float = 30.0) -> Iterator[Any]:
    """The items, with a bar and the time left on a terminal, and now and then a line elsewhere."""
    console = Console()
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining())
    hidden = _processes()[0] > 0 or not console.is_terminal
    begin = said = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=len(items))
        for done, item in enumerate(items):
            now = time.perf_counter()
            if hidden and now - said > every_seconds:
                said, left = now, (now - begin) / done * (len(items) - done)
                log(f"  {label}: {done} of {len(items)}, {format_duration(left)} left")
            yield item
            progress.update(task, completed=done + 1)
