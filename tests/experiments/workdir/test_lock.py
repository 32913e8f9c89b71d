"""Laws of the lock of a working directory."""

import contextlib
import errno
import json
import os
import pathlib
import random
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
from absl import flags

from experiments import console, main
from experiments.experiment import Experiment
from experiments.workdir import lock
from experiments.workdir.lock import InUse, only_writer
from tests.started import PIPE, Popen, started

HOLD = """
    import pathlib, sys, time
    from experiments.workdir import lock
    lock.BEAT = 0.1
    with lock.only_writer(pathlib.Path(sys.argv[1]), "training"):
        print("in", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)


@contextlib.contextmanager
def another(workdir: pathlib.Path, seconds: float = 100, program: str = HOLD) -> Iterator[Popen]:
    """A program that is in."""
    command = [sys.executable, "-c", textwrap.dedent(program), str(workdir), str(seconds)]
    with started(command, stdout=PIPE, stderr=PIPE) as running:
        assert running.stdout.readline() == "in\n"
        yield running


def write(workdir: pathlib.Path, **changes: object) -> None:
    """A lock of this process, but for `changes`."""
    content = lock._myself("training")._asdict() | changes
    (workdir / lock.NAME).write_text(json.dumps(content))


def test_a_second_writer_is_told_who_is_in_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    with another(tmp_path) as program:
        before = (tmp_path / lock.NAME).read_text()
        said = rf"in use: process {program.pid} on {socket.gethostname()} .*\(training\)"
        for _ in range(2):
            with pytest.raises(InUse, match=said), only_writer(tmp_path, "training"):
                pytest.fail("both are in")
        assert (tmp_path / lock.NAME).read_text() == before


def test_the_program_is_refused_before_it_writes_anything(
    tiny_experiment: Experiment, tmp_path: pathlib.Path
) -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with only_writer(tmp_path, "training"):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
        with pytest.raises(InUse, match=f"in use: process {os.getpid()} on"):
            main.run(tiny_experiment, tmp_path, ())
        assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_the_lock_of_a_killed_process_is_taken_at_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Also of one whose parent has not yet asked how it ended."""
    with another(tmp_path) as program:
        program.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        begin = time.monotonic()
        with only_writer(tmp_path, "training"):
            assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        assert time.monotonic() - begin < lock.PATIENCE
    assert f"of process {program.pid} " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


STOPPED_AT_WORK = """
    import ctypes, pathlib, signal, sys
    from experiments import console
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console.watch_signals()
    from experiments.workdir import lock
    with lock.only_writer(pathlib.Path(sys.argv[1]), "training"):
        console.doing("compiling")
        print("in", flush=True)
        while True: ctypes.CDLL(None).usleep(10_000_000)  # as a compiler: no Python instruction
"""


def test_a_program_that_is_stopped_while_it_compiles_leaves_no_lock(tmp_path) -> None:
    with another(tmp_path, program=STOPPED_AT_WORK) as program:
        assert (tmp_path / lock.NAME).exists()
        program.terminate()
        said, _ = program.communicate(timeout=10)
    assert program.returncode == console.STOPPED
    assert said == "stopped   while compiling; the same command continues\n"
    assert list(tmp_path.iterdir()) == []


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: pathlib.Path) -> None:
    write(tmp_path, began="1")
    with only_writer(tmp_path, "training"):
        pass
    write(tmp_path)
    with pytest.raises(InUse), only_writer(tmp_path, "training"):
        pass


def test_a_holder_elsewhere_lives_as_long_as_its_file_is_renewed(tmp_path: pathlib.Path) -> None:
    """Whatever its clock says: a year behind, here."""
    write(tmp_path, space="of another machine", pid=1, host="elsewhere")
    path, ended, year = tmp_path / lock.NAME, threading.Event(), 365 * 86400.0

    def renew() -> None:
        moment = time.time() - year
        while not ended.wait(0.1):
            moment += 0.1
            os.utime(path, (moment, moment))

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(InUse, match="process 1 on elsewhere"), only_writer(tmp_path, "training"):
        pass
    ended.set()
    thread.join()
    os.utime(path, (time.time() + year,) * 2)  # nor by a time that is yet to come
    begin = time.monotonic()
    with only_writer(tmp_path, "training"):
        assert time.monotonic() - begin >= lock.PATIENCE


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', "\x00" * 100, "../"])
def test_a_damaged_lock_is_waited_for_and_taken(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / lock.NAME).write_text(content)
    if content == "../":  # in a name of a file
        write(tmp_path, token=content)
    with only_writer(tmp_path, "training"):
        assert lock._read(tmp_path / lock.NAME) is not None
    assert list(tmp_path.iterdir()) == []


def race(workdir: pathlib.Path, count: int) -> list[bool]:
    """Which of so many that begin together get in, while those who do stay."""
    start, leave, found = threading.Barrier(count), threading.Event(), []

    def enter() -> None:
        start.wait()
        try:
            with only_writer(workdir, "training"):
                found.append(True)
                leave.wait(10)
        except InUse:
            found.append(False)

    threads = [threading.Thread(target=enter) for _ in range(count)]
    for thread in threads:
        thread.start()
    while len(found) < count:
        time.sleep(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    return found


def test_of_many_who_find_a_dead_holder_one_gets_in(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each acts a moment after it has looked, by when others have acted."""
    read = lock._read

    def slowly(path: pathlib.Path) -> lock.Holder | None:
        found = read(path)
        time.sleep(random.random() / 100)
        return found

    monkeypatch.setattr(lock, "_read", slowly)
    for _ in range(100):
        write(tmp_path, began="1")
        assert sum(race(tmp_path, 8)) == 1
        assert list(tmp_path.iterdir()) == []


def test_without_hard_links(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    with only_writer(tmp_path, "training"):
        with pytest.raises(InUse), only_writer(tmp_path, "training"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    assert list(tmp_path.iterdir()) == []


def test_one_who_lost_the_lock_writes_no_more(tmp_path: pathlib.Path) -> None:
    with another(tmp_path) as program:
        write(tmp_path, host="elsewhere", pid=7)
        assert program.wait(10) == 75
        assert "process 7 on elsewhere" in program.communicate()[1]
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == 7


def test_a_lock_that_somebody_deleted_comes_back(tmp_path: pathlib.Path) -> None:
    with only_writer(tmp_path, "training"):
        before = (tmp_path / lock.NAME).read_text()
        (tmp_path / lock.NAME).unlink()
        end = time.monotonic() + 10
        while not (tmp_path / lock.NAME).exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert (tmp_path / lock.NAME).read_text() == before


def test_where_processes_do_not_tell_when_they_began(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked, and every holder is watched."""
    monkeypatch.setattr(lock, "_space", lambda: "")
    with only_writer(tmp_path, "one"), pytest.raises(InUse), only_writer(tmp_path, "two"):
        pass
    write(tmp_path)
    with only_writer(tmp_path, "training"):
        pass


def test_what_ended_a_program_is_told_where_its_lock_cannot_go(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that became read-only: the lock stays, and the next finds its holder gone."""

    def read_only(*arguments: object, **options: object) -> bool:
        raise OSError(30, "Read-only file system")

    with (
        pytest.raises(ZeroDivisionError, match="what happened"),
        lock.only_writer(tmp_path, "training"),
    ):
        monkeypatch.setattr(lock, "_change", read_only)
        raise ZeroDivisionError("what happened")
    assert (tmp_path / lock.NAME).exists()
