"""Processes that tests start: signals as in a foreground, and an end with all their children.

A process inherits which signals are ignored: pytest in the background of a script (`&`) is deaf to
Ctrl-C, under nohup to a hang-up, and so would be what it starts. `started` gives each the defaults
and a session of its own. It also gives each a mark in its environment, which children inherit
wherever they go, and in the end kills what bears it, with its sessions. A process that `watch`
begins does so for a pytest that was itself killed. Without /proc the process group alone is killed.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from subprocess import PIPE, STDOUT, CompletedProcess, Popen, TimeoutExpired
from typing import Any

__all__ = ["PIPE", "ROOT", "STDOUT", "CompletedProcess", "Popen", "TimeoutExpired", "run"]
__all__ += ["foreground_signals", "started", "watch"]

ROOT = pathlib.Path(__file__).parents[1]
VARIABLE = "STARTED_BY_TESTS"  # holds the marks
_own = secrets.token_hex(8)  # the mark of this process's children
_numbers = itertools.count()


@contextlib.contextmanager
def foreground_signals() -> Iterator[None]:
    """While entered, no signal is blocked or ignored: what was ignored has a handler, of no effect.

    A program that is begun then has the default of each, for exec keeps no handler. To be entered
    in the main thread, as Python has it.
    """
    ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _processes() -> Iterator[tuple[int, int, bytes]]:
    """(number, session, environment at its start) of each process that runs, where there is /proc.

    A zombie does not.
    """
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(folder.name), int(session), (folder / "environ").read_bytes()


def _kill(mark: str, home: int) -> None:
    """Kills what bears a mark and what is of one session with it, until nothing is left.

    Args:
        home: the session of the tests, of which others are as well. Any other session was begun
            by something they started, and some programs (slurmstepd) overwrite their environment.
    """
    sessions: set[int] = set()
    end = time.monotonic() + 10  # for what the kernel does not let go
    while time.monotonic() < end:
        found = [*_processes()]
        sessions |= {of for _, of, environ in found if mark.encode() in environ} - {home}
        doomed = [pid for pid, of, environ in found if of in sessions or mark.encode() in environ]
        if not doomed:
            return
        for pid in doomed:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@functools.cache
def watch() -> Popen:
    """Begins a process that kills whatever this one has started, once this one has ended.

    From then on that is so also for what is started by other means, as by a library.
    """
    me = (str(os.getpid()), _own, str(os.getsid(0)))
    command = [sys.executable, "-I", "-S", __file__, *me]
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    guard = subprocess.Popen(command, **nowhere, start_new_session=True)
    os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')} {_own}"
    return guard


@contextlib.contextmanager
def started(command: Sequence[str | os.PathLike], **options: Any) -> Iterator[Popen]:
    """A process, killed with its children and theirs when the context is left, however it is.

    Args:
        options: of subprocess.Popen, but that its defaults are text, the project's root as the
            working directory, and nothing to read.
    """
    watch()
    mark = f"{_own}-{next(_numbers)};"
    environ = options.pop("env", os.environ) | {VARIABLE: f"{os.environ[VARIABLE]} {mark}"}
    fixed: dict[str, Any] = dict(env=environ, start_new_session=True)
    with foreground_signals():
        options = dict(cwd=ROOT, stdin=subprocess.DEVNULL, text=True) | options | fixed
        process = subprocess.Popen(command, **options)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            _kill(mark, os.getsid(0))


def run(
    command: Sequence[str | os.PathLike],
    code: int | None = 0,
    input: str | None = None,
    timeout: float = 300,
    **options: Any,
) -> CompletedProcess[str]:
    """A process that has ended, and what it printed.

    Args:
        code: the exit status that it must end with; None: any.
        input: what it is given to read.
        timeout: seconds after which it is killed.
        options: as of `started`.
    """
    options = dict(stdout=PIPE, stderr=PIPE) | options | ({} if input is None else {"stdin": PIPE})
    with started(command, **options) as process:
        output, errors = process.communicate(input, timeout)
    done = CompletedProcess(command, process.returncode, output, errors)
    assert code in (None, done.returncode), f"status {done.returncode}\n{output}{errors}"
    return done


if __name__ == "__main__":  # the process of `watch`
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.2)
    _kill(sys.argv[2], int(sys.argv[3]))
