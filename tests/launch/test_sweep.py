"""A sweep from its command to the end of its runs, over interruptions and deaths."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from experiments.console import format_duration
from experiments.files.atomic import read_json
from experiments.workdir import status
from experiments.workdir.metrics_file import Progress, progress
from experiments.workdir.status import Status
from launch import executors, plan, sweep
from launch.executors import Debug, Local
from launch.live_table import LiveTable, RunState, is_compiling
from tests import started
from tests.experiments.test_main import TINY
from tests.launch.test_job import wait_for_step
from tests.started import PIPE, ROOT, Popen

DRIVER = "tests.launch.driver"
DIGITS = "--config=experiments/configs/digits.py"


def command(workdir: pathlib.Path, *options: str, module: str = DRIVER) -> list[str]:
    words = [DIGITS, "--ablations=eps_simple", f"--workdir={workdir}", *options]
    return [sys.executable, "-m", module, *words]


def environment(behaviour: list[str], seconds: float = 0.02) -> dict[str, str]:
    by_seed = {str(seed): name for seed, name in enumerate(behaviour)}
    return os.environ | {"BEHAVIOUR": json.dumps(by_seed), "STEP_SECONDS": str(seconds)}


def run(workdir: pathlib.Path, behaviour: list[str], *options: str, code: int = 0) -> str:
    """A whole sweep over as many seeds as there are behaviours; returns what it printed."""
    seeds = ",".join(map(str, range(len(behaviour))))
    words = command(workdir, f"--seeds={seeds}", *options)
    return started.run(words, code, env=environment(behaviour)).stdout


@contextlib.contextmanager
def under_way(
    workdir: pathlib.Path, behaviour: list[str], *options: str, seconds: float = 0.2
) -> Iterator[Popen]:
    """A sweep that has begun."""
    seeds = ",".join(map(str, range(len(behaviour))))
    words = command(workdir, f"--seeds={seeds}", *options)
    with started.started(words, env=environment(behaviour, seconds), stdout=PIPE) as process:
        yield process


def folder(workdir: pathlib.Path, seed: int) -> pathlib.Path:
    return workdir / "runs" / f"eps_simple-seed{seed}"


def done(path: pathlib.Path) -> list[int]:
    """The steps that were done, in order, over all attempts."""
    return [int(line) for line in (path / "done.txt").read_text().split()]


def states(workdir: pathlib.Path, count: int) -> list[str]:
    return [status.read(folder(workdir, seed)).state for seed in range(count)]


WHOLE = list(range(1, 13))


def test_a_sweep_records_every_end_and_goes_on(tmp_path: pathlib.Path) -> None:
    behaviour = ["diverge", "crash:1", "finish", "wrong"]
    out = run(tmp_path, behaviour, "--max_parallel=2", "--retries=1", code=1)
    assert states(tmp_path, 4) == ["diverged", "finished", "finished", "failed"]
    assert "1 diverged, 2 finished, 1 failed" in out
    assert f"python -m launch.report {tmp_path}" in out
    assert "eps_simple-seed0: diverged" in out and "the loss is nan" in out
    assert "there is no such thing" in out
    assert done(folder(tmp_path, 2)) == WHOLE
    # Started again, now that the error is mended: what ended is left alone.
    before = {seed: (folder(tmp_path, seed) / "starts.txt").read_text() for seed in (0, 1, 2)}
    run(tmp_path, ["diverge", "crash:1", "finish", "finish"])
    assert states(tmp_path, 4) == ["diverged", "finished", "finished", "finished"]
    for seed, text in before.items():
        assert (folder(tmp_path, seed) / "starts.txt").read_text() == text


def test_the_twin_of_an_error_is_not_started(tmp_path: pathlib.Path) -> None:
    """Seeds of a run that ended with status 2; once it is mended they are."""
    out = run(tmp_path, ["wrong", "finish", "finish"], code=1)
    assert states(tmp_path, 3) == ["failed"] * 3
    assert not (folder(tmp_path, 1) / "starts.txt").exists()
    assert status.read(folder(tmp_path, 2)).message == "not started: the same error as " + (
        "eps_simple-seed0"
    )
    assert "3 runs: 3 failed" in out
    run(tmp_path, ["finish", "finish", "finish"])
    assert states(tmp_path, 3) == ["finished"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 2])
def test_no_more_runs_at_a_time_than_there_are_places(tmp_path: pathlib.Path, places: int) -> None:
    run(tmp_path, ["finish"] * 4, f"--max_parallel={places}")
    events = []
    for seed in range(4):
        begin, end = (folder(tmp_path, seed) / "starts.txt").read_text().splitlines()
        events += [(float(begin.split()[0]), 1), (float(end.split()[0]), -1)]
    running = [sum(change for _, change in sorted(events)[: i + 1]) for i in range(len(events))]
    assert max(running) <= places


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_a_signal_saves_all_and_the_same_command_continues(
    tmp_path: pathlib.Path, how: str
) -> None:
    behaviour = ["finish"] * 3
    with under_way(tmp_path, behaviour, "--max_parallel=2") as process:
        wait_for_step(folder(tmp_path, 0), 2)
        wait_for_step(folder(tmp_path, 1), 2)
        if how == "ctrl-c":  # a terminal signals its whole process group
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        assert process.wait(timeout=60) == 75
        assert "the same command" in process.stdout.read()
    assert states(tmp_path, 3) == ["stopped", "stopped", "waiting"]
    run(tmp_path, behaviour, "--max_parallel=2")
    for seed in range(3):
        assert done(folder(tmp_path, seed)) == WHOLE


@pytest.mark.slow
def test_kill_9_of_a_program_costs_the_steps_since_its_checkpoint(tmp_path: pathlib.Path) -> None:
    with under_way(tmp_path, ["finish"]) as process:
        wait_for_step(folder(tmp_path, 0), 3)
        words = (folder(tmp_path, 0) / "starts.txt").read_text().split()
        os.kill(int(words[1]), signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    steps = done(folder(tmp_path, 0))
    assert sorted(set(steps)) == WHOLE and len(steps) <= len(WHOLE) + 1
    assert len(status.read(folder(tmp_path, 0)).attempts) == 2


@pytest.mark.slow
def test_kill_9_of_the_sweep_and_of_a_job_starts_nothing_twice(tmp_path: pathlib.Path) -> None:
    with under_way(tmp_path, ["finish"], seconds=0.4) as process:
        wait_for_step(folder(tmp_path, 0), 2)
        process.kill()
        process.wait()
        listing = started.run(["ps", "-ewwo", "pid,args"]).stdout
        jobs = re.findall(rf"^\s*(\d+) .*submitit.core._submit {tmp_path}", listing, re.MULTILINE)
        assert len(jobs) == 1
        os.kill(int(jobs[0]), signal.SIGKILL)  # its program is an orphan now, and trains on
        run(tmp_path, ["finish"])
    assert done(folder(tmp_path, 0)) == WHOLE
    assert states(tmp_path, 1) == ["finished"]


def test_what_another_process_finishes_meanwhile_is_not_submitted(tmp_path: pathlib.Path) -> None:
    """As by the job of a sweep that was killed, or by a second sweep in the same folder."""

    class Watched(Debug):
        def submit(self, jobs):
            raise AssertionError(f"submitted {jobs}")

    (planned,) = plan.make_runs("experiments/configs/digits.py", ["eps_simple"], [0], {}, {})
    plan.write(tmp_path, [planned])
    sweeping = sweep.Sweep([planned], tmp_path, Watched(tmp_path / "jobs"), retries=2)
    with status.lock(folder(tmp_path, 0)):
        assert sweeping.step()
        status.write(folder(tmp_path, 0), Status("finished"))
    while sweeping.step():
        pass
    assert states(tmp_path, 1) == ["finished"]


def test_a_run_whose_job_dies_again_and_again_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a memory limit, which kills job and program together."""

    class Deadly(Debug):
        def submit(self, jobs):
            self.submitted = [*getattr(self, "submitted", []), *jobs]
            return {job.folder: "1" for job in jobs}

    (planned,) = plan.make_runs("experiments/configs/digits.py", ["eps_simple"], [0], {}, {})
    plan.write(tmp_path, [planned])
    machine = Deadly(tmp_path / "jobs")
    sweeping = sweep.Sweep([planned], tmp_path, machine, retries=2)
    while sweeping.step():
        pass
    assert len(machine.submitted) == 3
    known = status.read(folder(tmp_path, 0))
    assert known.state == "failed" and "3 times" in known.message


def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "sweep"
    options = [DIGITS, "--ablations=mu_mse,eps_simple", "--seeds=0,1", f"--workdir={workdir}"]
    grid = "--grid=optimizer.learning_rate=1e-3,2e-3"
    assert sweep.main([*options, grid, "--config.train.num_steps=20", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "8 runs" in out and out.count("--config.train.num_steps=20") == 8
    assert f"--config=experiments/configs/digits.py:mu_mse --config.{'train.num_steps=20'}" in out
    assert not workdir.exists()


def test_a_workdir_under_home_is_where_the_runs_are_told_to_work(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = sweep.parse([DIGITS, "--workdir=~/a sweep"])
    (planned,) = sweep.make_runs(options)
    place = plan.folder_of(options.workdir, planned)
    assert place.is_relative_to(tmp_path / "a sweep")
    assert f"--workdir={place}" in planned.command(place)


def test_the_script_for_fashion_mnist_plans_table_2(tmp_path: pathlib.Path) -> None:
    """Every config of it is loaded as experiments.main would load it."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    result = started.run(
        [str(ROOT / "docs" / "fashion_table2.sh"), "--dry_run", "--config.train.num_steps=20"],
        env=os.environ | {"PATH": path, "WORKDIR": str(tmp_path / "sweep")},
    )
    assert "18 runs" in result.stdout and result.stdout.count("num_steps=20") == 18
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ablation=table2"], ["--ablation=table2", "--help"]),
        (["--seeds=0..3"], ["--seeds=0..3", "0,1,2"]),
        (["--ablations=tabel2"], ["tabel2", "table2"]),
        (["--max_parallel=0"], ["--max_parallel=0", "at least 1"]),
        (["--retries=-1"], ["--retries=-1"]),
        (["--cluster=debug", "--max_parallel=2"], ["--max_parallel=2", "one at a time"]),
        (["--slurm=partition=gpu"], ["--cluster=slurm"]),
        (["--gpus_per_run=1", "--cluster=debug"], ["--gpus_per_run=1", "--cluster=local"]),
        (["--workdir=gs://bucket/sweep"], ["gs://bucket/sweep is no folder"]),
        (["--slurm=partition", "--cluster=slurm"], ["FIELD=VALUE"]),
        (["--slurm=partition=gpu", "--cluster=slurm"], ["time limit", "--slurm=time=1440"]),
        (["--gpus_per_run=64"], ["64 GPUs", "visible"]),
        (["--config.train.steps=1"], ["no field", "steps"]),
        (["--grid=x"], ["FIELD=VALUE"]),
    ],
)
def test_a_command_that_cannot_be_is_refused(
    options: list[str],
    words: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "check", lambda runs: None)  # whose process takes seconds
    assert sweep.main([DIGITS, f"--workdir={tmp_path / 'sweep'}", *options]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error, error
    assert not list(tmp_path.rglob("run.json"))


def test_without_submitit_the_command_says_what_to_install() -> None:
    script = "import sys; sys.modules['submitit'] = None; import launch.sweep"
    result = started.run([sys.executable, "-c", script], code=None)
    assert result.returncode != 0 and result.stderr.count("\n") == 1
    assert "submitit" in result.stderr and "'.[launch]'" in result.stderr


def test_gpus_and_cores_are_shared_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    local = Local(tmp_path, max_parallel=2, gpus_per_run=2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in local._environment] == ["4,5", "6,7"]
    assert (
        sorted([*local._cores[0], *local._cores[1]]) == list(range(6)) and len(local._cores[0]) == 3
    )
    with pytest.raises(ValueError, match="need 6 GPUs, and 4 are visible"):
        Local(tmp_path, max_parallel=3, gpus_per_run=2)
    assert executors._gpus(0, 0) == {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}


def test_the_table_shows_every_run() -> None:
    (planned,) = plan.make_runs("experiments/configs/digits.py", ["mu_mse"], [0], {}, {})
    runs = [
        RunState(planned, Status("running"), Progress(1200, 0.0312, 75.0)),
        RunState(planned._replace(name="c"), Status("running"), Progress(), compiling=True),
        RunState(
            planned._replace(name="b"), Status("diverged", message="the loss is nan"), Progress()
        ),
    ]
    text = io.StringIO()
    with LiveTable(Console(file=text, force_terminal=True, width=120)) as table:
        table.show(runs)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    for word in (
        "mu_mse-seed0",
        "1,200/4,000",
        "0.0312",
        "1:15",
        "the loss is nan",
        "1 diverged",
        "compiling",
    ):
        assert word in shown
    narrow = io.StringIO()
    long = [
        run._replace(planned=planned._replace(name=f"{'long' * 12}-{end}"))
        for run, end in zip(runs, ("first", "second", "third"), strict=True)
    ]
    with LiveTable(Console(file=narrow, force_terminal=True, width=80)) as table:
        table.show(long)
    columns = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", narrow.getvalue()).splitlines()
    names = "".join(line.split("│")[1].strip() for line in columns if line.count("│") > 2)
    assert all(word in names for word in ("-first", "-second", "-third"))
    assert [format_duration(s) for s in (59.6, 3723)] == ["1:00", "1:02:03"]


def test_a_run_compiles_until_it_says_that_it_has(tmp_path: pathlib.Path) -> None:
    """Also after an earlier attempt."""
    assert not is_compiling(tmp_path)
    said = "compiling the training step: about 9 s\ncompiled  it in 9 s\nstep 1\n"
    for text, compiling in ((said[:40], True), (said, False), (said + said[:40], True)):
        (tmp_path / "train.log").write_text(text)
        assert is_compiling(tmp_path) == compiling


@pytest.mark.slow
def test_the_real_program_under_a_sweep(
    tmp_path: pathlib.Path, data_dir: pathlib.Path, capfd: pytest.CaptureFixture
) -> None:
    options = [f"--{name}={value}" for name, value in TINY.items()]
    options += [f"--config.data.data_dir={data_dir}", "--grid=optimizer.learning_rate=1e-3,1e38"]
    words = command(tmp_path, "--cluster=debug", *options, module="launch.sweep")[3:]
    assert sweep.main(words) == 0
    good, bad = sorted((tmp_path / "runs").iterdir())[::-1][:2][::-1]
    found = {path.name: status.read(path) for path in (good, bad)}
    assert sorted(known.state for known in found.values()) == ["diverged", "finished"]
    for path in (good, bad):
        section = read_json(path / "results.json")["train"]
        assert section["state"] == status.read(path).state
        if section["state"] == "finished":
            assert (path / "samples" / "samples.png").is_file()
            assert progress(path).step == 8
