"""What a program says to people at a terminal, and how they tell it to stop."""

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

WIDTH = 79  # columns of a line
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST = 2.0  # seconds for what a program that is stopped still puts away
SOON, EVERY = 5.0, 30.0  # seconds until a line tells how far a loop is, and between two of them
BAR = threading.Lock()  # of whoever moves a bar; what is counted meanwhile is told in lines
REPEATED = 1.0  # seconds after which a second signal means more than the first: Slurm sends two
ADDRESSES = 3 * 2**30  # bytes; on 2 cores a small training takes that many, and with 2 GiB hangs
# What comes of a program that was stopped.
CONTINUES, AGAIN = "the same command continues", "the same command begins again"
STOPPED = 75  # the exit status of what is to be started again: sysexits' EX_TEMPFAIL


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


def log_lines(lines: Iterable[str]) -> None:
    """`log` of each."""
    for line in lines:
        log(line)


class _Steady:
    """A stream that nobody may read any more; what is written to it then goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._nowhere()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._nowhere()
            self._stream.flush()


def steady_output() -> None:
    """From now on no print ends this program: neither `| head -1` nor a letter of a path.

    What the encoding of standard output does not have is written as an escape.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = _Steady(sys.stdout)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, and elsewhere a line after SOON, then now and then.

    Within another bar, such as a training's, there are lines too.

    Yields:
        To be called with how many more of `total` are done.
    """
    console = Console()
    columns = (TextColumn(label), BarColumn(None), MofNCompleteColumn(), Elapsed(), Remaining())
    alone = BAR.acquire(blocking=False)
    hidden = _processes()[0] > 0 or not console.is_terminal or not alone
    begin = time.perf_counter()
    done, due = 0, begin + SOON
    with contextlib.ExitStack() as stack:
        stack.callback(BAR.release if alone else int)
        bar = Progress(*columns, console=console, transient=True, disable=hidden, expand=True)
        stack.enter_context(bar)
        task = bar.add_task(label, total=total)

        def advance(count: int) -> None:
            nonlocal done, due
            done += count
            bar.update(task, completed=done)
            now = time.perf_counter()
            if hidden and now > due and done < total:
                due, left = now + EVERY, (now - begin) / done * (total - done)
                log(f"  {label}: {done:,} of {total:,}, {format_duration(left)} left")

        yield advance


def track(items: Sequence[Any], label: str) -> Iterator[Any]:
    """The items, each of which counts in `progress` when the next one is asked for."""
    with progress(label, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def meanwhile(
    act: Callable[[threading.Event], None], patience: float | None = None
) -> Iterator[None]:
    """Runs `act` in a thread of its own, which is told by an event when to end.

    Args:
        patience: seconds for which its end is waited for; None: as long as it takes.
    """
    ended = threading.Event()
    thread = threading.Thread(target=act, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(patience)


@contextlib.contextmanager
def told_when_slow(what: str, seconds: float = 30.0) -> Iterator[None]:
    """Says what is waited for after so many seconds, and again whenever that time has doubled."""
    begin = time.monotonic()

    def tell(ended: threading.Event) -> None:
        due = seconds
        while not ended.wait(begin + due - time.monotonic()):
            due *= 2
            log(f"waiting   since {format_duration(time.monotonic() - begin)} for {what}")

    with meanwhile(tell):
        yield


def check_address_space() -> None:
    """Ends a program under a `ulimit -v` in which jax's threads hang while they start."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= ADDRESSES:
        return
    print(
        f"error: this process may have {limit / 2**30:.1f} GiB of addresses (ulimit -v), and jax "
        f"needs {ADDRESSES / 2**30:.0f} before it computes anything. Lift that limit (ulimit -v "
        "unlimited); a control group limits the memory that is really used.",
        file=sys.stderr,
    )
    sys.exit(2)


class _Watch:
    """What the thread and the program know of each other."""

    def __init__(self) -> None:
        self.doing, self.then = "starting", CONTINUES
        self.at_stop: list[Callable[[], None]] = []
        self.patient = 0  # how many `stop_requested` are entered
        self.first: float | None = None  # when a signal came that one of them is to heed
        self.before: dict[int, Any] = {}  # handlers that were there, of the signals watched

    def heed(self, number: int) -> None:
        """Ends the program, or leaves that to whoever asked for patience; in the thread."""
        now = time.monotonic()
        if self.patient:
            self.first = self.first or now
            if now - self.first <= REPEATED:
                return
        cursor = "\x1b[?25h\r\x1b[K" if sys.stdout.isatty() else ""  # which a moving bar hides
        stop_now(f"{cursor}stopped   while {self.doing}; {self.then}")


_watch = _Watch()


def stop_now(line: str) -> NoReturn:
    """Ends the program from any thread, with a last line and the exit status STOPPED."""
    for child in multiprocessing.active_children():
        child.kill()
    for act in _watch.at_stop:
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(LAST)
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode())
    os._exit(STOPPED)


@contextlib.contextmanager
def at_stop(act: Callable[[], None]) -> Iterator[None]:
    """Has `stop_now` call `act` first, which is given LAST seconds."""
    _watch.at_stop.append(act)
    try:
        yield
    finally:
        _watch.at_stop.remove(act)


def watch_signals() -> None:
    """From now on Ctrl-C and SIGTERM end this program at once; those ignored stay so.

    Python runs a signal's handler between two of its own instructions, so not while a compiler or a
    device is at work for minutes. Therefore a thread of its own hears of signals: it ends the
    program with one line and the exit status STOPPED, "start the same command again", unless
    `stop_requested` is entered, which waits for a good moment instead.

    To be called once, in the main thread, before what takes long to import.
    """
    found = {number: signal.getsignal(number) for number in SIGNALS}
    _watch.before = {n: old for n, old in found.items() if old not in (signal.SIG_IGN, None)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in _watch.before:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while heard := os.read(reading, 1):
            if heard[0] in _watch.before:
                _watch.heed(heard[0])

    threading.Thread(target=listen, name="signals", daemon=True).start()


def release_signals() -> None:
    """Undoes `watch_signals`, for several processes, whose cluster says when to stop."""
    for number, old in _watch.before.items():
        signal.signal(number, old)
    _watch.before = {}


def doing(what: str, then: str = CONTINUES) -> None:
    """What the line will say, "stopped while ...; ...", should a signal come from now on."""
    _watch.doing, _watch.then = what, then


@contextlib.contextmanager
def stop_requested(heed: bool = True) -> Iterator[list[float]]:
    """Collects Ctrl-C and SIGTERM, as the times of each; one more after REPEATED does kill.

    What is ignored stays so: a script starts background programs deaf to Ctrl-C.

    Args:
        heed: False collects nothing, where a cluster announces the end by SIGTERM to those who
            agree on a step then; Ctrl-C is passed on to them as that.
    """
    received: list[float] = []
    heard: list[float] = []

    def handler(number: int, frame: Any) -> None:
        heard.append(time.monotonic())
        if heard[-1] - heard[0] > REPEATED:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        elif heed:
            received.append(heard[-1])
        elif len(heard) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    untouched = (signal.SIG_IGN, None)  # None: a handler that is not Python's
    numbers = SIGNALS if heed else (signal.SIGINT,)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in untouched}
    for number in before:
        signal.signal(number, handler)
    _watch.patient += 1
    try:
        yield received
    finally:
        _watch.patient -= 1
        for number, previous in before.items():
            signal.signal(number, previous)
