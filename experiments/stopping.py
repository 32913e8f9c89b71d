"""How a program ends when it is asked to, by Ctrl-C or SIGTERM, at whatever moment.

Python runs a signal's handler between two of its own instructions, so not while a compiler or a
device is at work for minutes. `watch` therefore lets a thread of its own hear of signals: it ends
the program with one line and the exit status 75, "start the same command again", unless
`stop_requested` is entered, which waits for a good moment instead.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED = 1.0  # seconds after which a second signal means more than the first: Slurm sends two
STOPPED = 75  # the exit status of what is to be started again: sysexits' EX_TEMPFAIL


class _Watch:
    """What the thread and the program know of each other."""

    def __init__(self) -> None:
        self.doing = "starting"
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
        for child in multiprocessing.active_children():
            child.kill()
        cursor = "\x1b[?25h\r\x1b[K" if sys.stdout.isatty() else ""  # which a moving bar hides
        line = f"{cursor}stopped   while {self.doing}; the same command continues\n"
        with contextlib.suppress(OSError):
            os.write(1, line.encode())
        os._exit(STOPPED)


_watch = _Watch()


def watch() -> None:
    """From now on Ctrl-C and SIGTERM end this program at once; those ignored stay so.

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


def release() -> None:
    """Undoes `watch`, for a program of several processes, whose cluster says when to stop."""
    for number, old in _watch.before.items():
        signal.signal(number, old)
    _watch.before = {}


def doing(what: str) -> None:
    """What the line will say, "stopped while ...", should a signal come from now on."""
    _watch.doing = what


@contextlib.contextmanager
def stop_requested(heed: bool = True) -> Iterator[list[float]]:
    """Collects Ctrl-C and SIGTERM, as the times of each; one more after REPEATED does kill.

    What is ignored stays so: a script starts background programs deaf to Ctrl-C.

    Args:
        heed: False collects nothing, where a cluster announces the end in another way.
    """
    received: list[float] = []

    def handler(number: int, frame: Any) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > REPEATED:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    untouched = (signal.SIG_IGN, None)  # None: a handler that is not Python's
    before: dict[int, Any] = {}
    if heed:
        before = {number: signal.getsignal(number) for number in SIGNALS}
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
