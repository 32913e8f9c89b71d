"""A Slurm cluster of one node on this machine, from Debian's packages slurm-wlm and munge."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.started import STDOUT, TimeoutExpired, run, started

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
CPUS, GPUS = 64, 8  # as Slurm counts them: none need exist, and nothing binds a task to one

# All files in one folder and all ports its own, so that no Slurm of the machine is touched.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """Why no cluster can be had here."""


class Cluster(NamedTuple):
    """A cluster that runs."""

    environ: dict[str, str]  # with which the commands find it

    def run(self, *command: str) -> str:
        """What a command prints."""
        return run(command, env=self.environ, timeout=60).stdout.strip()


def _find_programs() -> dict[str, str]:
    if os.geteuid() != 0:
        raise Unavailable("Slurm's daemons need root")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) for name in (*DAEMONS, *COMMANDS)}
    missing = [name for name, where in found.items() if where is None]
    if missing:
        raise Unavailable(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    return {name: where for name, where in found.items() if where is not None}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("", 0))
        return [free.getsockname()[1] for free in sockets]


def _write_files(folder: pathlib.Path, slurmd: str, kill_wait: int) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ports = _free_ports(2)
    text = SLURM_CONF.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller_port=ports[0],
        node_port=ports[1],
        kill_wait=kill_wait,
        cpus=CPUS,
        gpus=GPUS,
    )
    (folder / "slurm.conf").write_text(text)
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    # No task gets a cgroup, which a container often cannot give. From 23.02 on that can be said;
    # before, the plugin must only be one that loads.
    old = int(re.findall(r"\d+", run([slurmd, "-V"]).stdout)[0]) < 23
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if old else 'disabled'}\n")


@contextlib.contextmanager
def _daemon(folder: pathlib.Path, *command: str, environ: dict[str, str]) -> Iterator[None]:
    """Runs a daemon in the foreground, and lets it end in order."""
    with (
        (folder / f"{pathlib.Path(command[0]).name}.out").open("wb") as output,
        started(command, env=environ, stdout=output, stderr=STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(TimeoutExpired):
                process.wait(10)


def _wait(what: str, check: Callable[[], bool], folder: pathlib.Path) -> None:
    for _ in range(300):
        if check():
            return
        time.sleep(0.1)
    tails = [
        f"{log.name}: {' | '.join(log.read_text(errors='replace').splitlines()[-4:])}"
        for log in sorted(folder.glob("*.out"))
    ]
    raise Unavailable("\n".join([f"{what} does not come up:", *tails]))


@contextlib.contextmanager
def start(kill_wait: int = 30) -> Iterator[Cluster]:
    """Starts the daemons, yields when the node is idle, and ends them and all jobs.

    Args:
        kill_wait: seconds between a job's SIGTERM and its SIGKILL; 30 is Slurm's default.

    Raises:
        Unavailable: saying what is missing, or what the daemons wrote where they do not start.
    """
    programs = _find_programs()
    with (
        tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = pathlib.Path(name)
        folder.chmod(0o755)  # munge refuses a socket that others cannot reach
        _write_files(folder, programs["slurmd"], kill_wait)
        environ = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        options = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        options += ["--foreground", f"--socket={folder}/munge.socket"]
        stack.enter_context(_daemon(folder, programs["munged"], *options, environ=environ))
        _wait("munge", (folder / "munge.socket").exists, folder)
        for daemon in DAEMONS[1:]:
            stack.enter_context(_daemon(folder, programs[daemon], "-D", environ=environ))

        def answer(*command: str) -> str:
            return run(command, code=None, env=environ).stdout

        _wait("the node", lambda: answer("sinfo", "-h", "-o", "%T").strip() == "idle", folder)
        try:
            yield Cluster(environ)
        finally:
            answer("scancel", "--signal=KILL", "--full", "--user=root")
            answer("scancel", "--user=root")
            with contextlib.suppress(Unavailable):
                _wait("the end of all jobs", lambda: not answer("squeue", "-h").strip(), folder)
