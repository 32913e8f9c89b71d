"""Runs ablations, seeds and grids of one config, on this machine or a Slurm cluster.

    python -m launch.sweep --config=experiments/configs/digits.py --ablations=table2 \\
        --seeds=0,1,2 --workdir=runs/table2 --max_parallel=2

Each run is `python -m experiments.main` with a folder of its own under WORKDIR/runs. The same
command, started again after whatever happened, leaves alone what finished or diverged and continues
the rest. --config.FIELD=VALUE sets a field in all runs. Exit status: 0 when every run has finished
or diverged, 1 when some failed, 75 when stopped on request, 2 for an error in the command.
"""

import argparse
import itertools
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Parser, reported
from experiments.configs import ablations
from experiments.files.atomic import read_json, write_json
from experiments.workdir import status
from experiments.workdir.metrics_file import progress
from experiments.workdir.outcome import EXIT_STATUS, USER_ERROR, Outcome
from launch import plan
from launch.live_table import LiveTable, RunState, is_compiling, summary
from launch.plan import PlannedRun

try:
    from launch.executors import Debug, Local, Machine, Slurm
    from launch.job import Job
except ModuleNotFoundError as missing:
    if missing.name != "submitit":
        raise
    sys.exit("error: sweeps need submitit: pip install -c constraints.txt -e '.[launch]'")

POLL_SECONDS = 1.0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; `settings` are the fields that --config.FIELD=VALUE sets in all runs, `slurm`
    has the pairs of --slurm, numbers as such.

    Raises:
        ValueError: for an option that does not exist, a value out of range, an option of another
            cluster, or what is no pair.
    """
    parser = Parser("launch.sweep", __doc__)
    add = parser.add_argument
    add("--config", required=True, help="the config file, without an ablation")
    add("--workdir", required=True, help="where the sweep keeps everything")
    add("--ablations", default="", help="names and groups (--list_ablations of experiments.main)")
    add("--seeds", default="0", help="such as 0,1,2 or 0-2")
    add("--grid", action="append", default=[], help="FIELD=VALUE,VALUE,...; may be repeated")
    add("--cluster", default="local", choices=["local", "slurm", "debug"])
    add("--max_parallel", type=int, default=1, help="runs at a time")
    add("--gpus_per_run", type=int, default=0, help="local: of each run; 0: each sees all GPUs")
    add("--retries", type=int, default=2, help="how often a run that crashed is started again")
    add("--slurm", default="", help="partition=gpu,gpus_per_node=1,time=720,... (submitit's names)")
    add("--dry_run", action="store_true", help="print the runs and their commands")
    options, rest = parser.parse_known_args(argv)
    for word in rest:
        if not word.startswith("--config."):
            parser.error(f"there is no option {word!r}")
    fields = [word.removeprefix("--config.") for word in rest]
    options.settings = dict(plan.parse_assignment(field, "--config.") for field in fields)
    for name, least in (("max_parallel", 1), ("gpus_per_run", 0), ("retries", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}={getattr(options, name)} must be at least {least}.")
    for name, cluster in (("slurm", "slurm"), ("gpus_per_run", "local")):
        if getattr(options, name) and options.cluster != cluster:
            raise ValueError(f"--{name}={getattr(options, name)} is for --cluster={cluster}.")
    if "://" in options.workdir:
        raise ValueError(f"--workdir={options.workdir} is no folder: mount it, and name that.")
    options.workdir = Path(options.workdir).expanduser()  # as experiments.main does
    pairs = [plan.parse_assignment(pair, "--slurm") for pair in plan.split(options.slurm) if pair]
    options.slurm = {name: int(value) if value.isdigit() else value for name, value in pairs}
    return options


def make_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """The runs that the options describe.

    Raises:
        ValueError: naming the option that cannot be.
    """
    seeds = plan.parse_seeds(options.seeds)
    names = ablations.names(options.ablations)
    several = options.slurm.get("nodes", 1) * options.slurm.get("ntasks_per_node", 1) > 1
    settings = ({"distributed": "auto"} if several else {}) | options.settings
    grid = plan.parse_grid(options.grid)
    return plan.make_runs(options.config, names, seeds, grid, settings)


def make_machine(options: argparse.Namespace) -> Machine:
    """Where --cluster says.

    Raises:
        ValueError: if it is not there, or not as the options want it.
    """
    folder, parallel = options.workdir / "jobs", options.max_parallel
    if options.cluster == "slurm":
        return Slurm(folder, parallel, options.slurm)
    if options.cluster == "local":
        return Local(folder, parallel, options.gpus_per_run)
    if parallel > 1:
        raise ValueError(f"--max_parallel={parallel}: --cluster=debug runs one at a time.")
    return Debug(folder)


class Sweep:
    """Carries out runs and looks after them; what it knows of them is in their folders.

    Args:
        runs: which.
        workdir: the folder of the sweep; jobs.json there has the job of every run.
        machine: where.
        retries: how often a run that crashed is started again, and one submitted again whose job
            ended without a word.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], workdir: Path, machine: Machine, retries: int
    ) -> None:
        self.runs = {plan.folder_of(workdir, run): run for run in runs}
        self.machine, self.retries = machine, retries
        self.stopping = False
        self._jobs_path = workdir / "jobs.json"
        known = read_json(self._jobs_path) if self._jobs_path.is_file() else {}
        self._jobs = {f: known[run.name] for f, run in self.runs.items() if run.name in known}
        self._carried_out: set[Path] = set()
        self._lost: Counter[Path] = Counter()
        self._ended = {folder for folder in self.runs if status.ended(folder)}

    def states(self) -> list[RunState]:
        """What there is to show."""
        return [
            RunState(run, status.read(f), progress(f), is_compiling(f))
            for f, run in self.runs.items()
        ]

    def step(self) -> bool:
        """Looks after every run once; returns whether any has not ended."""
        alive = self.machine.alive(self._jobs)
        for folder in self._carried_out - alive:
            self._after(folder)
        self._carried_out = alive
        left = [f for f in self.runs if f not in self._ended and f not in alive]
        if not self.stopping and left:
            self._submit(left)
        return bool(left or alive)

    def stop(self) -> tuple[bool, str]:
        """Asks the runs to stop; returns whether to wait for any, and what to tell the user."""
        self.stopping = True
        return self.machine.stop()

    def _submit(self, left: Sequence[Path]) -> None:
        """As many of the runs as there are places, without those that another process has."""
        free = filter(self._queue, left)  # looked at only while there are places
        folders = list(itertools.islice(free, self.machine.places()))
        if not folders:
            return
        jobs = [Job(f, self.runs[f].command(f), self.retries) for f in folders]
        self._jobs |= self.machine.submit(jobs)
        self._carried_out |= set(folders)
        known = read_json(self._jobs_path) if self._jobs_path.is_file() else {}
        own = {self.runs[folder].name: job for folder, job in self._jobs.items()}
        write_json(self._jobs_path, known | own)

    def _queue(self, folder: Path) -> bool:
        """Marks a run as queued, unless it is being run, or has ended under another sweep's job."""
        with status.lock(folder) as descriptor:
            if descriptor is None:
                return False
            known = status.read(folder)
            if known.state in status.FINAL:
                self._ended.add(folder)
                return False
            status.write(folder, known._replace(state="queued"))
            return True

    def _after(self, folder: Path) -> None:
        """What became of a run whose job has ended; one that is not over is submitted again."""
        known = status.read(folder)
        with status.lock(folder) as descriptor:
            lives_on = descriptor is None  # the program, without its job
        if known.state in (*status.FINAL, "failed"):
            self._ended.add(folder)
            if known.state == "failed" and known.attempts[-1].get("exit_status") == USER_ERROR:
                self._leave_twins(folder)
        elif lives_on or known.state == "stopped":
            return  # what was stopped is saved
        elif self.stopping:
            status.write(folder, known._replace(state="stopped"))
        else:
            self._lost[folder] += 1
            if self._lost[folder] > self.retries:
                message = f"its job ended {self._lost[folder]} times without a word (killed?)"
                status.write(folder, known._replace(state="failed", message=message))
                self._ended.add(folder)

    def _leave_twins(self, folder: Path) -> None:
        """Other seeds of a run that its user must mend would end in the same way: they wait."""
        like = plan.twins(self.runs[folder], list(self.runs.values()))
        for other, run in self.runs.items():
            if run in like and other not in self._ended | self._carried_out:
                name = self.runs[folder].name
                message = f"not started: the same error as {name}"
                status.write(other, status.read(other)._replace(state="failed", message=message))
                self._ended.add(other)


def watch(sweep: Sweep, table: LiveTable) -> bool:
    """Looks after the runs until all have ended; returns False when a signal came before.

    The first Ctrl-C or SIGTERM lets the runs of this machine save and stop; a second one leaves
    them to it.
    """
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while sweep.step():
            table.show(sweep.states())
            if received:
                again = sweep.stopping
                wait, text = sweep.stop()
                if not again:
                    table.print_line(text)
                if not wait or len(received) > 1:
                    return False
            time.sleep(POLL_SECONDS)
        table.show(sweep.states())
        return True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@reported
def main(argv: Sequence[str]) -> int:
    """The program; returns its exit status."""
    options = parse(argv)
    runs = make_runs(options)
    if options.dry_run:
        for run in runs:
            folder = plan.folder_of(options.workdir, run)
            print(f"{run.name} ({status.read(folder).state})")
            print(f"  {shlex.join(['python', *run.command(folder)])}")
        print(f"{len(runs)} runs")
        return 0
    plan.check([run for run in runs if not status.ended(plan.folder_of(options.workdir, run))])
    machine = make_machine(options)
    plan.write(options.workdir, runs)
    sweep = Sweep(runs, options.workdir, machine, options.retries)
    with LiveTable() as table:
        if not watch(sweep, table):
            table.print_line("stopped; the same command continues what has not ended")
            return EXIT_STATUS[Outcome.STOPPED]
        ended = sweep.states()
        table.print_line(f"{len(ended)} runs: {summary(ended)}")
        place = shlex.quote(str(options.workdir))
        table.print_line(f"tables and pictures: python -m launch.report {place}")
    return 1 if any(run.status.state == "failed" for run in ended) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
