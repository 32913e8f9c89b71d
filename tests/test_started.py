"""No process outlives the test that started it, and none inherits deafness to signals."""

import ast
import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests import started
from tests.started import PIPE, ROOT

# What starts processes, and may be used in started.py alone.
MODULES = {"subprocess", "multiprocessing", "pty", "pexpect"}
OF_OS = ("fork", "posix_spawn", "spawn", "system", "popen")
OTHERS = ("ProcessPoolExecutor", "create_subprocess_exec", "create_subprocess_shell")
EXCEPTED = {
    "tests/started.py": "the one place",
    "tests/mutants.py": "a program, which ends what it starts",
    "tests/fixtures/make_old_run.py": "no test, and run in a checkout that has no started.py",
}

NUMBERS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE)
# A program that heeds nothing, with a child, one of a session of its own, and one there that has no
# environment: says their numbers.
FAMILY = """
import os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
apart = "echo $$; env -i sleep 600 & echo $!; wait"
apart = subprocess.Popen(["sh", "-c", apart], start_new_session=True, stdout=subprocess.PIPE)
print(os.getpid(), child.pid, *(int(apart.stdout.readline()) for _ in range(2)), flush=True)
time.sleep(600)
"""


def starts(source: str) -> list[str]:
    """The lines of a program that can start a process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        if any(
            name.partition(".")[0] in MODULES
            or name.startswith(tuple(f"os.{start}" for start in OF_OS))
            or name.endswith(OTHERS)
            for name in names
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "from subprocess import PIPE as pipe",
        "import json, multiprocessing.pool",
        "def f():\n    from multiprocessing import get_context",
        "os.fork()",
        "start = os.posix_spawnp",
        "from os import system",
        "concurrent.futures.ProcessPoolExecutor(2)",
        "from concurrent.futures import ProcessPoolExecutor",
        "await_(asyncio.create_subprocess_exec('true'))",
    ],
)
def test_what_starts_a_process_is_seen(line: str) -> None:
    assert starts(line)
    assert not starts("import os\nos.kill(1, 9)\nos.path.exists('x')\nstarted.run(['true'])")


def test_processes_are_started_in_one_place() -> None:
    paths = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    assert {name for name, path in paths.items() if starts(path.read_text())} == {*EXCEPTED}


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Signals as for pytest in the background of a script, under nohup, and worse."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in NUMBERS)
        assert set(NUMBERS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_who_is_deaf_starts_programs_that_hear() -> None:
    with deaf():
        for number in NUMBERS[:-1]:  # Python itself ignores the last
            started.run(["sh", "-c", f"kill -{int(number)} $$"], code=-number)
        done = started.run(["sh", "-c", "kill -13 $$"], code=-signal.SIGPIPE)
        signal.raise_signal(signal.SIGTERM)
    assert (done.stdout, done.stderr) == ("", "")


def ended(pids: list[int]) -> bool:
    """Whether none of them runs within some seconds, as something else than a zombie."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        states = []
        for pid in pids:
            with contextlib.suppress(OSError):
                states.append(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1])
        if set(states) <= {"Z"}:
            return True
        time.sleep(0.02)
    return False


def numbers(process: started.Popen) -> list[int]:
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 4
    for pid in pids:
        os.kill(pid, 0)
    return pids


@pytest.mark.parametrize("error", [None, AssertionError, KeyboardInterrupt, started.TimeoutExpired])
def test_children_of_every_session_end_however_a_test_does(error: type | None) -> None:
    command, pids = [sys.executable, "-c", FAMILY], []
    with contextlib.suppress(error or ()), started.started(command, stdout=PIPE) as process:
        pids = numbers(process)
        if error is started.TimeoutExpired:
            process.wait(0.1)
        elif error is not None:
            raise error
    assert ended(pids)
    assert process.returncode == -signal.SIGKILL and process.stdout.closed


def test_children_of_a_program_that_has_ended_end() -> None:
    leaving = FAMILY.replace("time.sleep(600)\n", "")
    with started.started([sys.executable, "-c", leaving], stdout=PIPE) as process:
        pids = numbers(process)
        assert process.wait(10) == 0
        for pid in pids[1:]:
            os.kill(pid, 0)
    assert ended(pids)


def test_without_proc_the_process_group_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started, "_processes", lambda: iter(()))
    with started.started([sys.executable, "-c", FAMILY], stdout=PIPE) as process:
        leader, child, apart, _ = numbers(process)
    assert ended([leader, child])
    os.killpg(apart, signal.SIGKILL)


def test_a_status_that_was_not_expected_is_told_with_what_was_printed() -> None:
    with pytest.raises(AssertionError, match=r"status 3\nsaid\nof it\n"):
        started.run(["sh", "-c", "echo said; echo of it >&2; exit 3"])
    assert started.run(["sh", "-c", "read x; echo $x; exit 3"], 3, input="a\n").stdout == "a\n"


@pytest.mark.parametrize("library", [False, True])
def test_tests_that_are_killed_leave_nothing(library: bool) -> None:
    """Neither what they started nor what a library started for them."""
    test = f"""
import subprocess, sys
from tests.started import started, watch
watch()
if {library}:
    subprocess.run([sys.executable, "-c", {FAMILY!r}])
else:
    with started([sys.executable, "-c", {FAMILY!r}]) as process: process.wait()
"""
    with started.started([sys.executable, "-c", test], stdout=PIPE) as process:
        pids = numbers(process)
        process.kill()
        process.wait()
        assert ended(pids)
