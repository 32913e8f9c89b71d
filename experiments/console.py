"""What a program says to people at a terminal."""

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

WIDTH = 79  # columns of a line


def _processes() -> tuple[int, int]:
    """The index of this process, and how many there are."""
    import jax  # not at once: launchers say things without it

    return jax.process_index(), jax.process_count()


def format_duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def wrapped(text: str, indent: int = 10) -> str:
    """Lines of at most WIDTH columns, cut between words, the later ones indented."""
    lines = (
        textwrap.fill(
            line,
            WIDTH,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        for line in text.split("\n")
    )
    return "\n".join(lines)


def log(text: str, wrap: bool = True) -> None:
    """One line on standard output, from the main process only.

    Args:
        text: the line.
        wrap: whether a long one is `wrapped`; not a command, which is there to be copied.
    """
    if _processes()[0] == 0:
        print(wrapped(text) if wrap else text, flush=True)


@contextlib.contextmanager
def progress(
    label: str, total: int, every_seconds: float = 30.0
) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, and now and then a line elsewhere.

    Yields:
        To be called with how many more of `total` are done.
    """
    console = Console()
    columns = (TextColumn(label), BarColumn(None), MofNCompleteColumn(), Elapsed(), Remaining())
    hidden = _processes()[0] > 0 or not console.is_terminal
    begin = said = time.perf_counter()
    done = 0
    with Progress(*columns, console=console, transient=True, disable=hidden, expand=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            bar.update(task, completed=done)
            now = time.perf_counter()
            if hidden and now - said > every_seconds and done < total:
                said, left = now, (now - begin) / done * (total - done)
                log(f"  {label}: {done:,} of {total:,}, {format_duration(left)} left")

        yield advance


def track(items: Sequence[Any], label: str) -> Iterator[Any]:
    """The items, each of which counts in `progress` when the next one is asked for."""
    with progress(label, len(items)) as advance:
        for item in items:
            yield item
            advance(1)
