"""Where runs are carried out: this machine, a Slurm cluster, or this process, through submitit."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import submitit

from launch.job import Job

FOREVER_MINUTES = 60 * 24 * 365  # submitit's local jobs have a time limit, of 2 minutes unless told


class Machine(Protocol):
    """What carries out the runs of a sweep."""

    def places(self) -> int:
        """How many runs `submit` takes now."""

    def submit(self, jobs: Sequence[Job]) -> dict[Path, str]:
        """Starts or queues them; returns the name of each folder's job."""

    def alive(self, names: Mapping[Path, str]) -> set[Path]:
        """Folders of the runs that wait in a queue or are being carried out."""

    def stop(self) -> tuple[bool, str]:
        """What Ctrl-C asks for, which may be repeated.

        Returns:
            Whether to wait for runs that are being saved, and what to tell the user.
        """


class Local:
    """At most `max_parallel` runs at a time on this machine, the others when places fall free.

    With several places the processor's cores are shared out among them, and the GPUs where
    `gpus_per_run` is not 0; with 0 every run sees all GPUs.

    Raises:
        ValueError: for more GPUs than this machine has.
    """

    def __init__(self, folder: Path, max_parallel: int, gpus_per_run: int) -> None:
        self._executor = submitit.LocalExecutor(folder)
        self._executor.update_parameters(timeout_min=FOREVER_MINUTES, stderr_to_stdout=True)
        self._free = list(range(max_parallel))[::-1]
        self._active: dict[Path, tuple[int, submitit.Job[str]]] = {}
        self._environment = [_gpus(place, gpus_per_run) for place in range(max_parallel)]
        needed, present = max_parallel * gpus_per_run, len(_all_gpus())
        if needed > present:
            raise ValueError(
                f"--max_parallel={max_parallel} runs of --gpus_per_run={gpus_per_run} need "
                f"{needed} GPUs, and {present} are visible here."
            )
        cores = sorted(os.sched_getaffinity(0))
        self._cores = [cores[place::max_parallel] or cores for place in range(max_parallel)]

    def places(self) -> int:
        return len(self._free)

    def submit(self, jobs: Sequence[Job]) -> dict[Path, str]:
        for job in jobs:
            place = self._free.pop()
            job.environment, job.cores = self._environment[place], self._cores[place]
            # A terminal's Ctrl-C goes to its whole process group; these are to be asked by `stop`.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                submitted = self._executor.submit(job)
            finally:
                signal.signal(signal.SIGINT, before)
            self._active[job.folder] = (place, submitted)
        return {job.folder: self._active[job.folder][1].job_id for job in jobs}

    def alive(self, names: Mapping[Path, str]) -> set[Path]:
        for folder, (place, job) in list(self._active.items()):
            if job.done():
                del self._active[folder]
                self._free.append(place)
        return set(self._active)

    def stop(self) -> tuple[bool, str]:
        for _, job in self._active.values():
            os.kill(int(job.job_id), signal.SIGTERM)
        return bool(self._active), "stopping: the runs are saved first"


class Slurm:
    """All runs in the queue of a Slurm cluster, as an array of at most `max_parallel` at a time.

    Args:
        options: sbatch's, as submitit names them: partition, time (minutes), nodes,
            ntasks_per_node, cpus_per_task, gpus_per_node, mem, account, qos, ...

    Raises:
        ValueError: if there is no Slurm here, no time limit, or an option that submitit does not
            know.
    """

    def __init__(self, folder: Path, max_parallel: int, options: Mapping[str, Any]) -> None:
        try:
            if "time" not in options:  # submitit's own limit is 5 minutes
                raise ValueError("name the time limit in minutes, as in --slurm=time=1440.")
            self._executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)
            self._executor.update_parameters(
                **{"job_name": "ddpm", "array_parallelism": max_parallel} | dict(options)
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"--cluster=slurm: {error}") from error

    def places(self) -> int:
        return sys.maxsize  # the queue is Slurm's

    def submit(self, jobs: Sequence[Job]) -> dict[Path, str]:
        with self._executor.batch():
            submitted = {job.folder: self._executor.submit(job) for job in jobs}
        return {folder: queued.job_id for folder, queued in submitted.items()}

    def alive(self, names: Mapping[Path, str]) -> set[Path]:
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i|%T"]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode:  # too busy to answer
            return set(names)
        states = dict(line.split("|") for line in listed.stdout.splitlines())
        ended = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        return {folder for folder, job in names.items() if states.get(job, ended[0]) not in ended}

    def stop(self) -> tuple[bool, str]:
        return False, "the jobs stay in the queue (scancel ends them)"


class Debug:
    """One run after the other in this process, which sees every error of the launcher itself."""

    def __init__(self, folder: Path) -> None:
        self._executor = submitit.DebugExecutor(folder)

    def places(self) -> int:
        return 1

    def submit(self, jobs: Sequence[Job]) -> dict[Path, str]:
        for job in jobs:
            self._executor.submit(job).result()
        return {job.folder: "debug" for job in jobs}

    def alive(self, names: Mapping[Path, str]) -> set[Path]:
        return set()  # what was submitted has ended

    def stop(self) -> tuple[bool, str]:
        return False, "stopped"  # the signal itself has reached the run


def _all_gpus() -> list[str]:
    """The numbers of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _gpus(place: int, gpus_per_run: int) -> dict[str, str | None]:
    """The variable by which a run sees its GPUs; submitit would hide them all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus_per_run:
        visible = ",".join(_all_gpus()[place * gpus_per_run : (place + 1) * gpus_per_run])
    return {"CUDA_VISIBLE_DEVICES": visible}
