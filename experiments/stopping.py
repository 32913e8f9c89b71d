"""A request to stop, which a training answers by saving first."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax

REPEATED = 1.0  # seconds after which a second signal means more than the first: Slurm sends two


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
    if jax.process_count() == 1:
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
