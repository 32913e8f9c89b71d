"""Which runs a sweep has: ablations x grid x seeds of one config, each with its folder."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.command_line import load_config
from experiments.files.atomic import read_json, write_json
from experiments.workdir import status
from experiments.workdir.metrics_file import progress

LONGEST_NAME = 200  # bytes; file systems allow 255, and some files beside it have longer names


class PlannedRun(NamedTuple):
    """One training with its samples and numbers.

    Values of config fields are as typed on the command line; `experiments.main` reads them.
    """

    name: str  # of its folder
    config: str  # the config file
    ablation: str  # "" is the config itself
    seed: int
    overrides: dict[str, str]  # its point of the grid
    settings: dict[str, str]  # config fields that all runs of the sweep set
    num_steps: int  # of its training

    def config_arguments(self) -> list[str]:
        """What chooses the config, as experiments.main takes it."""
        file = f"{self.config}:{self.ablation}" if self.ablation else self.config
        fields = self.settings | {"seed": str(self.seed)} | self.overrides
        return [f"--config={file}", *(f"--config.{name}={value}" for name, value in fields.items())]

    def command(self, folder: Path) -> list[str]:
        """What follows `python` to start it, or to continue it."""
        return ["-m", "experiments.main", f"--workdir={folder}", *self.config_arguments()]


def split(text: str) -> list[str]:
    """The values of "1e-4,2e-4" or "(1,2),(1,2,2)": commas inside brackets separate nothing."""
    depth, values = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def parse_seeds(text: str) -> list[int]:
    """The seeds of "0,1,2" or "0-2", in their order.

    Raises:
        ValueError: for anything else, and for a range that falls.
    """
    seeds: list[int] = []
    for word in split(text):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", word, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise ValueError(
                f"--seeds={text}: numbers or ranges separated by commas, such as 0,1,2 or 0-2."
            )
        seeds += range(first, last + 1)
    return seeds


def parse_assignment(text: str, option: str) -> tuple[str, str]:
    """The parts of FIELD=VALUE.

    Raises:
        ValueError: if it is none, naming the option that it came with.
    """
    name, given, value = text.partition("=")
    if not (name and given and value):
        raise ValueError(f"{option} {text!r} is no FIELD=VALUE.")
    return name, value


def parse_grid(lines: Sequence[str]) -> dict[str, list[str]]:
    """Field -> values, from lines such as "optimizer.learning_rate=1e-4,2e-4".

    Raises:
        ValueError: for a line that is none, an empty or repeated value, or a repeated field.
    """
    grid: dict[str, list[str]] = {}
    for line in lines:
        name, text = parse_assignment(line, "--grid")
        values = split(text)
        if not all(values) or len(set(values)) < len(values):
            raise ValueError(f"--grid {line!r}: every value must be there, and there once.")
        if name in grid:
            raise ValueError(f"--grid names {name!r} twice: give all its values in one --grid.")
        grid[name] = values
    return grid


def make_runs(
    config: str,
    ablations: Sequence[str],
    seeds: Sequence[int],
    grid: Mapping[str, Sequence[str]],
    settings: Mapping[str, str],
) -> list[PlannedRun]:
    """All runs, those of the first seed first, each checked as far as its config alone tells.

    Raises:
        ValueError: for a field that is set twice, two runs of one name, a name that is too long,
            or a config that experiments.main would refuse.
    """
    if ":" in config:
        raise ValueError(
            f"--config={config}: name the file alone, and what follows the colon in --ablations."
        )
    for name in grid.keys() & settings.keys():
        raise ValueError(f"--grid and --config.{name} both set {name!r}: keep one of them.")
    if "seed" in {*grid, *settings}:
        raise ValueError("the seed is set by --seeds=0,1,2 and not as a field of the config.")
    runs: dict[str, PlannedRun] = {}
    points = list(itertools.product(*grid.values()))
    for seed, ablation, values in itertools.product(seeds, ablations, points):
        overrides = dict(zip(grid, values, strict=True))
        point = [f"{field}={value}" for field, value in overrides.items()]
        parts = [ablation or Path(config).stem, *point, f"seed{seed}"]
        name = re.sub(r"[^\w.=+-]", "_", "-".join(parts))
        if name in runs:
            raise ValueError(
                f"two runs would be named {name!r}: an ablation or seed is repeated, or values of "
                "--grid differ only in signs that a name does not keep."
            )
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"the name {name!r} is longer than the {LONGEST_NAME} bytes that a folder's may "
                "have: vary fewer fields in one --grid, or set the long ones by --config.FIELD."
            )
        run = PlannedRun(name, config, ablation, seed, overrides, dict(settings), num_steps=0)
        num_steps = load_config(run.config_arguments()).train.num_steps
        runs[name] = run._replace(num_steps=num_steps)
    return list(runs.values())


def folder_of(workdir: Path, run: PlannedRun) -> Path:
    """The run's folder, which is its --workdir."""
    return workdir / "runs" / run.name


def check(runs: Sequence[PlannedRun]) -> None:
    """Has the config of every run built and its data found, before the first one starts.

    Another process does it, for launchers do without an engine; on the processor, since none of
    the devices is theirs.

    Raises:
        ValueError: saying what is wrong, and with which runs.
    """
    unlike = [run for number, run in enumerate(runs) if not twins(run, runs[:number])]
    arguments = {run.name: run.config_arguments() for run in unlike}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.check"],
        input=json.dumps(arguments),
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip().removeprefix("error: "))


def twins(run: PlannedRun, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The other runs that differ from one in nothing but the seed."""
    like = run._replace(name="", seed=0)
    return [other for other in runs if other != run and other._replace(name="", seed=0) == like]


def _has_begun(folder: Path) -> bool:
    """Whether a run took a step, saved one, or is at work now."""
    if progress(folder).step or any((folder / "checkpoints").glob("[0-9]*")):
        return True
    with status.lock(folder) as descriptor:
        return descriptor is None


def write(workdir: Path, runs: Sequence[PlannedRun]) -> None:
    """Writes run.json of every run and adds the runs to sweep.json.

    A run that never took a step may be there with other settings: it begins under the new ones.

    Raises:
        ValueError: if one that did is there already with other settings, or sweep.json is not a
            sweep's, before anything is written.
    """
    folders = {folder_of(workdir, run): run for run in runs}
    anew = []
    for folder, run in folders.items():
        path = folder / "run.json"
        before = read_json(path) if path.is_file() else run._asdict()
        unlike = "".join(
            f"  {name}: {before.get(name)} then, {value} now\n"
            for name, value in run._asdict().items()
            if before.get(name) != value
        )
        if unlike and not _has_begun(folder):
            anew.append(folder)
        elif unlike:
            raise ValueError(
                f"{folder} holds a run of the same name with other settings:\n{unlike}"
                "Choose another --workdir, or the settings that the sweep was started with."
            )
    path = workdir / "sweep.json"
    known = read_json(path).get("runs") if path.is_file() else []
    if not isinstance(known, list):
        raise ValueError(f"{path} is no list of runs: choose another --workdir, or remove it.")
    for folder, run in folders.items():
        write_json(folder / "run.json", run._asdict() | {"command": run.command(folder)})
    for folder in anew:
        status.write(folder, status.Status())
    names = dict.fromkeys([*known, *(run.name for run in runs)])
    write_json(path, {"runs": list(names)})
