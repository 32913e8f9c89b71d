"""One run, from its start to the record of its end."""

import contextlib
import json
import os
import pathlib
import pickle
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from experiments.workdir import status
from experiments.workdir.metrics_file import Progress, progress
from experiments.workdir.status import Status
from launch.job import Job, Signals
from tests.started import PIPE, Popen, started

PROGRAM = str(pathlib.Path(__file__).parent / "program.py")


def job(folder: pathlib.Path, behaviour: str, retries: int = 2, **more: str) -> Job:
    environment: dict[str, str | None] = {"BEHAVIOUR": json.dumps({"0": behaviour}), **more}
    return Job(folder, [PROGRAM, f"--workdir={folder}", "--config.seed=0"], retries, environment)


def starts(folder: pathlib.Path) -> int:
    lines = (folder / "starts.txt").read_text().splitlines()
    return sum(not line.endswith("end") for line in lines)


def test_a_run_that_finishes(tmp_path: pathlib.Path) -> None:
    assert job(tmp_path, "finish")() == "finished"
    known = status.read(tmp_path)
    assert known.state == "finished" and known.message == ""
    (attempt,) = known.attempts
    assert attempt["exit_status"] == 0 and attempt["started"] <= attempt["ended"]
    assert progress(tmp_path) == Progress(12, 1 / 12, 0.0)
    assert PROGRAM in (tmp_path / "train.log").read_text()


def test_a_run_that_diverges_is_not_started_again(tmp_path: pathlib.Path) -> None:
    assert job(tmp_path, "diverge")() == "diverged"
    assert status.read(tmp_path).message == "at step 2: the loss is nan"
    assert starts(tmp_path) == 1


def test_an_error_of_the_user_s_is_not_tried_again(tmp_path: pathlib.Path) -> None:
    assert job(tmp_path, "wrong")() == "failed"
    known = status.read(tmp_path)
    assert "exit status 2" in known.message and "there is no such thing" in known.message
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("state", status.FINAL)
def test_a_job_that_was_queued_twice_leaves_alone_what_has_ended(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, state: str, rank: str
) -> None:
    monkeypatch.setenv("SLURM_PROCID", rank)
    status.write(tmp_path, Status(state))
    assert job(tmp_path, "finish")() == state
    assert not (tmp_path / "starts.txt").exists()
    assert status.read(tmp_path) == Status(state)


@pytest.mark.usefixtures("interruptible")
def test_a_warning_at_the_end_of_a_run_queues_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[str] = []

    def attempt(*_: object) -> int:
        signal.raise_signal(signal.SIGUSR2)
        return 0

    monkeypatch.setattr(Job, "_attempt", attempt)
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append("again"))
    try:
        assert job(tmp_path, "finish")() == "finished"
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert queued == []


@pytest.mark.parametrize(("crashes", "state"), [(2, "finished"), (3, "failed")])
def test_a_crash_is_retried_a_stated_number_of_times(
    tmp_path: pathlib.Path, crashes: int, state: str
) -> None:
    assert job(tmp_path, f"crash:{crashes}", retries=2)() == state
    known = status.read(tmp_path)
    assert len(known.attempts) == starts(tmp_path) == 3
    assert [attempt["exit_status"] for attempt in known.attempts][:2] == [1, 1]
    if state == "failed":
        assert "exit status 1 at attempt 3" in known.message
        assert "RuntimeError: something broke" in known.message
        assert any("Traceback" in line for line in known.log_tail)
    else:
        assert known.message == "" and known.log_tail == ()


@contextlib.contextmanager
def begun(task: Job, **more: str) -> Iterator[Popen]:
    """The job in a process of its own, as submitit would run it."""
    script = (
        "import pickle, sys, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"  # submitit's own handlers
        "signal.signal(signal.SIGUSR2, lambda *_: print('queued again', flush=True))\n"
        "print(pickle.load(sys.stdin.buffer)(), flush=True)\n"
    )
    pipes = dict(stdin=PIPE, stdout=PIPE, text=False)
    with started([sys.executable, "-c", script], env=os.environ | more, **pipes) as process:
        process.stdin.write(pickle.dumps(task))
        process.stdin.flush()
        yield process


def wait_for_step(folder: pathlib.Path, step: int) -> None:
    for _ in range(600):
        if progress(folder).step >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


@pytest.mark.parametrize(
    ("number", "more", "said"),
    [
        (signal.SIGTERM, {}, ["stopped"]),
        (signal.SIGINT, {}, ["stopped"]),
        (signal.SIGTERM, {"SLURM_JOB_ID": "7"}, ["stopped"]),
        (signal.SIGUSR2, {"SLURM_JOB_ID": "7"}, ["queued again", "stopped"]),
    ],
)
def test_a_signal_lets_the_program_save(
    tmp_path: pathlib.Path, number: int, more: dict[str, str], said: list[str]
) -> None:
    with begun(job(tmp_path, "finish", STEP_SECONDS="0.2"), **more) as process:
        wait_for_step(tmp_path, 2)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert out.decode().split("\n")[:-1] == said
    assert status.read(tmp_path).state == "stopped"
    saved = int((tmp_path / "step.txt").read_text())
    assert 2 <= saved < 12
    assert job(tmp_path, "finish")() == "finished"
    done = [int(line) for line in (tmp_path / "done.txt").read_text().split()]
    assert done == list(range(1, 13))  # no step was lost, none was done twice


def test_the_warning_does_not_reach_the_program(tmp_path: pathlib.Path) -> None:
    """Its default action would kill it."""
    script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)"
    assert Job(tmp_path, ["-c", script], 0)() == "finished"


def test_a_killed_program_is_started_again(tmp_path: pathlib.Path) -> None:
    with begun(job(tmp_path, "finish", STEP_SECONDS="0.2")) as process:
        wait_for_step(tmp_path, 2)
        os.kill(int((tmp_path / "starts.txt").read_text().split()[1]), signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    assert out.decode() == "finished\n" and starts(tmp_path) == 2
    assert status.read(tmp_path).attempts[0]["exit_status"] == -signal.SIGKILL


def test_a_run_is_carried_out_once_at_a_time(tmp_path: pathlib.Path) -> None:
    """Also by a program whose job was killed over it."""
    with begun(job(tmp_path, "finish", STEP_SECONDS="0.2")) as process:
        wait_for_step(tmp_path, 1)
        assert job(tmp_path, "finish")() == "running"
        process.kill()
        process.communicate(timeout=60)
        assert job(tmp_path, "finish")() == "running"
        wait_for_step(tmp_path, 12)
        while job(tmp_path, "finish")() == "running":
            time.sleep(0.05)
    done = [int(line) for line in (tmp_path / "done.txt").read_text().split()]
    assert done == list(range(1, 13))


def test_the_environment_of_the_program(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GONE", "1")
    script = "import os; print('GONE' in os.environ, os.environ['NEW'], os.sched_getaffinity(0))"
    core = min(os.sched_getaffinity(0))
    everything = os.sched_getaffinity(0)
    try:
        Job(tmp_path, ["-c", script], 0, {"GONE": None, "NEW": "here"}, [core])()
    finally:
        os.sched_setaffinity(0, everything)
    assert f"False here {{{core}}}" in (tmp_path / "train.log").read_text()


def test_other_processes_of_a_run_leave_its_record_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert job(tmp_path, "finish")() == "finished"
    assert not (tmp_path / "status.json").exists() and not (tmp_path / "train.log").exists()
    assert (tmp_path / "train.1.log").is_file()


@pytest.mark.usefixtures("interruptible")
def test_handlers_are_put_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    with Signals() as signals:
        assert not signals.stop
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop
    assert [signal.getsignal(number) for number in numbers] == before


def test_progress_overlooks_a_line_that_is_being_written(tmp_path: pathlib.Path) -> None:
    assert progress(tmp_path) == Progress()
    lines = [
        json.dumps({"step": step, "loss": 0.5, "eta_seconds": 3.0, "padding": "x" * 90})
        for step in range(1, 101)
    ]
    extra = json.dumps({"step": 100, "validation_bpd_fast": 4.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, extra, lines[0][:20]]))
    assert progress(tmp_path) == Progress(100, 0.5, 3.0)


def test_a_status_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    assert status.read(tmp_path) == Status()
    known = Status("failed", ({"host": "a"},), "why", ("line",))
    status.write(tmp_path, known)
    again = status.read(tmp_path)
    assert again == known
    content = known._asdict()
    others = (
        *({}, {"state": "finished"}, content | {"state": "done"}),
        *(content | {"attempts": 3}, content | {"version": 2}),
    )
    for text in ("{", *map(json.dumps, others)):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(ValueError, match=r"status\.json is .*"):
            status.read(tmp_path)
