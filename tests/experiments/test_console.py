"""How programs end that are asked to; those here import no jax, so that each takes no time."""

import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from experiments import command_line, console
from tests.started import PIPE, CompletedProcess, Popen, TimeoutExpired, run, started

START = "from experiments import console; import ctypes, signal, sys, time\n"
# As a compiler does: not a Python instruction in ten seconds, and other threads may run.
BUSY = "print('ready', flush=True)\nwhile True: ctypes.CDLL(None).usleep(10_000_000)\n"


@contextlib.contextmanager
def ready(program: str) -> Iterator[Popen]:
    """A program that has printed its first line."""
    with started([sys.executable, "-c", START + program], stdout=PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.parametrize("number", console.SIGNALS)
def test_a_signal_ends_a_program_at_once_whatever_it_does(number: int) -> None:
    with ready("console.watch_signals(); console.doing('compiling')\n" + BUSY) as process:
        begin = time.monotonic()
        process.send_signal(number)
        said, _ = process.communicate(timeout=5)
    assert time.monotonic() - begin < 3
    assert process.returncode == console.STOPPED
    assert said == "stopped   while compiling; the same command continues\n"


def test_a_signal_waits_where_a_good_moment_will_come_and_a_second_one_does_not() -> None:
    program = "console.watch_signals()\nwith console.stop_requested() as stop:\n "
    program += "print('ready', flush=True)\n while not stop: time.sleep(0.01)\n "
    with ready(program + "print('seen', flush=True)\n time.sleep(60)\n") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "seen\n"
        process.send_signal(signal.SIGINT)  # at once, as Slurm sends them
        with pytest.raises(TimeoutExpired):
            process.wait(timeout=console.REPEATED)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == console.STOPPED


def test_what_is_ignored_stays_so_and_a_released_program_is_python_s() -> None:
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN); console.watch_signals()\n" + BUSY
    with ready(ignoring) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(TimeoutExpired):
            process.wait(timeout=0.5)
        process.terminate()
        assert process.wait(timeout=5) == console.STOPPED
    program = "console.watch_signals(); console.release_signals()\n"
    program += "try:\n print('ready', flush=True)\n time.sleep(60)\n"
    with ready(program + "except KeyboardInterrupt: sys.exit(9)\n") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 9


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_kills_unless_it_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sends SIGTERM twice within milliseconds; a user who insists takes longer."""
    with console.stop_requested() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop
    monkeypatch.setattr(console, "REPEATED", 0.0)
    with pytest.raises(KeyboardInterrupt), console.stop_requested():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_a_program_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    """As one that a script started in the background does; SIGTERM still stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with console.stop_requested() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_ctrl_c_in_a_program_without_a_training_is_one_line(capsys) -> None:
    @command_line.reported
    def program() -> int:
        raise KeyboardInterrupt

    assert program() == console.STOPPED
    assert capsys.readouterr().err == "stopped   the same command begins again\n"


def run_unread(program: str, first: int, **environ: str) -> CompletedProcess[bytes]:
    """A program whose standard output is closed after so many lines, as by `| head`."""
    command = [sys.executable, "-c", "from experiments import console\n" + program]
    pipes = dict(stdout=PIPE, stderr=PIPE, text=False)
    with started(command, env=os.environ | environ, **pipes) as process:
        lines = [process.stdout.readline() for _ in range(first)]
        process.stdout.close()
        errors = process.stderr.read()
        return CompletedProcess(command, process.wait(timeout=60), b"".join(lines), errors)


@pytest.mark.parametrize(
    "say",
    ["print(i)", "print(i, flush=True)", "Console().print(i)", "sys.stdout.write(f'{i}' * 9999)"],
)
def test_a_reader_that_leaves_does_not_end_the_program(say: str, tmp_path: pathlib.Path) -> None:
    done = tmp_path / "done"
    program = "import sys\nfrom rich.console import Console\nconsole.steady_output()\n"
    program += "print('first', flush=True)\n"
    program += f"for i in range(5000): {say}\nopen({str(done)!r}, 'w').close()"
    result = run_unread(program, 1)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"first\n", b"")
    assert done.exists()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_letters_that_the_locale_has_not_are_escaped(locale: str) -> None:
    program = "console.steady_output(); print('a \\ud55c \\udcff', flush=True)"
    plain = {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    result = run_unread(program, 1, **plain, PYTHONIOENCODING="")
    expected = "a \\ud55c \\udcff\n" if locale == "C" else "a \ud55c \\udcff\n"
    assert (result.returncode, result.stdout) == (0, expected.encode())


def test_too_few_addresses_are_an_error_at_once_and_no_hang(tmp_path: pathlib.Path) -> None:
    command = f"{sys.executable} -m experiments.main --config=digits --workdir={tmp_path}"
    done = run(["bash", "-c", f"ulimit -v 2000000; exec {command}"], code=2, timeout=60)
    assert "1.9 GiB of addresses (ulimit -v), and jax needs 3" in done.stderr


def test_who_waits_long_is_told_why_and_ever_less_often(capsys: pytest.CaptureFixture) -> None:
    with console.told_when_slow("the disk", seconds=30.0):
        pass
    assert not capsys.readouterr().out
    with console.told_when_slow("the disk", seconds=0.1):
        time.sleep(1.0)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4  # after 0.1, 0.2, 0.4 and 0.8 seconds
    assert all(line.startswith("waiting   since ") and "the disk" in line for line in said)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only element is the time that the console reads."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_a_loop_of_five_seconds_says_how_far_it_is(clock: list[float], capsys) -> None:
    """Elsewhere than on a terminal: after 5 seconds, and then every 30."""
    said = []
    for second in console.track(range(100), "work"):
        clock[0] += 1.0
        if capsys.readouterr().out:
            said.append(second)
    assert said == [6, 37, 68, 99]


def test_a_short_loop_says_nothing(clock: list[float], capsys) -> None:
    for _ in console.track(range(4), "work"):
        clock[0] += 1.0
    assert capsys.readouterr().out == ""


def test_of_two_loops_one_moves_a_bar_and_the_other_speaks(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(console.Console, "is_terminal", True)
    with console.progress("outer", 2) as each:
        assert console.BAR.locked()
        for _ in console.track(range(8), "inner"):
            clock[0] += 1.0
        each(1)
    assert not console.BAR.locked()
    lines = [line for line in capsys.readouterr().out.split("\n") if "inner:" in line]
    assert len(lines) == 1 and "6 of 8, 0:02 left" in lines[0]
