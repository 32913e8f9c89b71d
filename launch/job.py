"""One run as submitit carries it to a machine: starts the program, retries it, records the end."""

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.helpers import DelayedSubmission

from experiments.workdir import status
from experiments.workdir.outcome import USER_ERROR, outcome_of
from experiments.workdir.results import read_results
from experiments.workdir.status import Status

TAIL_LINES = 30  # of the log of a failed run


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Job:
    """Runs the program of one run folder to its end, over crashes and interruptions."""

    folder: Path  # the run's
    command: list[str]  # what follows `python`
    retries: int  # how often a crashed program is started again
    environment: dict[str, str | None] = field(default_factory=dict)  # None removes a variable
    cores: list[int] | None = None  # of the processor, that the program may use; None is all

    def __call__(self) -> str:
        """Returns the state in which the run was left."""
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        if rank > 0:  # the first process of the run keeps the record
            ended = status.read(self.folder).state
            return ended if ended in status.FINAL else self._run(rank, ())
        with status.lock(self.folder) as descriptor:
            if descriptor is None:
                return "running"
            ended = status.read(self.folder).state
            if ended in status.FINAL:  # under a job that was queued twice
                return ended
            return self._run(rank, (descriptor,))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again before a time limit or on preemption: the same job."""
        return DelayedSubmission(self)

    def _run(self, rank: int, descriptors: tuple[int, ...]) -> str:
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)
        known = status.read(self.folder)._replace(message="", log_tail=())
        with Signals() as signals:
            for attempt in range(self.retries + 1):
                begin = {"host": socket.gethostname(), "started": _now()}
                attempts = known.attempts
                if rank == 0:
                    known = known._replace(state="running", attempts=(*attempts, begin))
                    status.write(self.folder, known)
                code = self._attempt(rank, descriptors, signals, known)
                end = begin | {"ended": _now(), "exit_status": code}
                known = known._replace(attempts=(*attempts, end))
                ended = outcome_of(code)
                crashed = "stopped" if signals.stop else "failed"
                state = crashed if ended is None else ended.value
                if state != "failed" or code == USER_ERROR or attempt == self.retries:
                    break
            if rank == 0:
                status.write(self.folder, self._ended(known, state, code))
        if state == "stopped":
            signals.hand_on()
        return state

    def _log(self, rank: int) -> Path:
        return self.folder / ("train.log" if rank == 0 else f"train.{rank}.log")

    def _attempt(
        self, rank: int, descriptors: tuple[int, ...], signals: "Signals", known: Status
    ) -> int:
        """Starts the program, waits for its end and returns its exit status."""
        environment = os.environ | self.environment
        with self._log(rank).open("a") as log:
            log.write(f"--- {_now()} {socket.gethostname()} {' '.join(self.command)}\n")
            log.flush()
            program = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in environment.items() if value is not None},
                pass_fds=descriptors,
                # The warning is for this process, and would kill the program.
                preexec_fn=lambda: signal.signal(Signals.WARNING, signal.SIG_IGN),
                # A terminal's Ctrl-C then reaches it through this process only. Not under Slurm,
                # where some settings would leave it behind when the job ends.
                start_new_session="SLURM_JOB_ID" not in os.environ,
            )
            while not signals.stop:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return program.wait(timeout=0.2)
            program.send_signal(signal.SIGTERM)
            if rank == 0:
                status.write(self.folder, known._replace(state="stopping"))
            return program.wait()

    def _ended(self, known: Status, state: str, code: int) -> Status:
        """The status after the last attempt."""
        known = known._replace(state=state)
        if state == "diverged":
            section = read_results(self.folder)["train"]
            return known._replace(message=f"at step {section['step']:,}: {section['reason']}")
        if state == "failed":
            with self._log(0).open(errors="replace") as log:
                tail = [line.rstrip() for line in deque(log, TAIL_LINES)]
            how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
            words = [line for line in tail if line and not line.startswith(("---", "(--"))]
            message = f"{how} at attempt {len(known.attempts)}: {words[-1] if words else ''}"
            return known._replace(message=message, log_tail=tuple(tail))
        return known


class Signals:
    """While entered, SIGTERM, Ctrl-C and the cluster's warning ask the program to save and stop."""

    WARNING = signal.SIGUSR2  # submitit's: before a time limit, and on preemption

    def __init__(self) -> None:
        self.stop = False
        self._warned: Any = None
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        before = self._before[number]
        if number == self.WARNING:
            self._warned = frame
        elif callable(before) and before is not signal.default_int_handler:
            before(number, frame)  # the launcher's own, where it runs in this process

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT, self.WARNING):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def hand_on(self) -> None:
        """After a warning, lets submitit queue the job again, now that the program has saved."""
        handler = self._before[self.WARNING]
        if self._warned is not None and callable(handler):
            handler(self.WARNING, self._warned)
