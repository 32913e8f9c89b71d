"""Sweeps and the sbatch example on a real Slurm, where this machine can run one."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.data import digits
from experiments.workdir import status
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.metrics_file import progress
from tests.experiments.test_main import TINY
from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import Cluster
from tests.started import PIPE, ROOT, STDOUT, Popen, run, started

STEPS = 100

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        with slurm_cluster.start(kill_wait=240) as cluster:
            yield cluster
    except slurm_cluster.Unavailable as reason:
        pytest.skip(f"no Slurm: {reason}")


def wait(what: str, check: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def sweep(cluster: Cluster, folder: pathlib.Path, name: str) -> Iterator[Popen]:
    """A sweep of one run of two processes with a device each."""
    fields = TINY | {
        "config.data.data_dir": str(folder / "data"),
        "config.train.num_steps": str(STEPS),
        "config.train.preview_every": "0",
        "config.train.checkpoint_every": str(STEPS),
        "config.train.finish_with": "()",
    }
    command = [
        *(sys.executable, "-m", "launch.sweep", "--config=experiments/configs/digits.py"),
        *("--ablations=eps_simple", f"--workdir={folder / name}", "--retries=0"),
        *("--cluster=slurm", "--slurm=ntasks_per_node=2,time=30"),
        *(f"--{field}={value}" for field, value in fields.items()),
    ]
    environ = cluster.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    with started(command, env=environ, stdout=PIPE, stderr=STDOUT) as process:
        yield process


def requeue(cluster: Cluster, run: pathlib.Path) -> None:
    """Interrupts the one job in the queue when its training is under way, as an operator does."""
    wait("the first metrics", lambda: progress(run).step > 0, 600)
    job = cluster.run("squeue", "--noheader", "--format=%i")
    cluster.run("scontrol", "requeue", job)
    state = ("squeue", "--noheader", "--format=%T", f"--jobs={job}")
    wait("the requeue", lambda: cluster.run(*state) == "PENDING", 300)
    # Slurm would keep a requeued job waiting for two minutes.
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_requeued_training_ends_as_an_undisturbed_one(
    cluster: Cluster, tmp_path: pathlib.Path
) -> None:
    digits.digits(str(tmp_path / "data")).open("train")
    checksums = {}
    for name, exits in {"whole": [0], "parts": [75, 0]}.items():
        run = tmp_path / name / "runs" / "eps_simple-seed0"
        with sweep(cluster, tmp_path, name) as process:
            if name == "parts":
                requeue(cluster, run)
            out, _ = process.communicate(timeout=600)
        assert process.returncode == 0 and "1 finished" in out, out
        log = (run / "train.log").read_text()
        assert [attempt["exit_status"] for attempt in status.read(run).attempts] == exits, log
        assert log.count("2 process(es)") == len(exits)
        assert log.count("resuming  step") == len(exits) - 1
        with Checkpoints(run) as checkpoints:
            checksums[name] = checkpoints.meta(STEPS)["checksums"]
    assert checksums["whole"] == checksums["parts"]


def test_slurm_accepts_the_example(cluster: Cluster) -> None:
    """Slurm's own check, which submits nothing."""
    example = str(ROOT / "launch" / "clusters" / "slurm.sbatch")
    command = ("sbatch", "--test-only", example, "--config=experiments/configs/cifar10.py")
    answer = run(command, env=cluster.environ)
    assert "to start at" in answer.stderr and "using 64 processors" in answer.stderr
    # It does read the options: more GPUs than the node has are refused.
    wrong = (*command[:2], "--gpus-per-node=9", *command[2:])
    answer = run(wrong, code=None, env=cluster.environ)
    assert answer.returncode != 0 and "not available" in answer.stderr, answer.stderr
