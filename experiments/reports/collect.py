"""The runs below a folder, or out of a report's summary; they are read and never written to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files.atomic import read_json
from experiments.workdir.results import OBJECTS, measured
from experiments.workdir.run import Run, read_run

MARKS = ("run.json", "results.json", "metrics.jsonl")  # of the folder of a run


class Collection(NamedTuple):
    """What there is to report.

    runs: in the order of their folders.
    problems: what could not be read, one line each.
    pictures: what was drawn of the runs, as `figures.draw` returns it; only of a summary.
    """

    runs: tuple[Run, ...]
    problems: tuple[str, ...] = ()
    pictures: Mapping[str, Any] = {}


def _planned(name: str, place: str) -> Run:
    """A run that a sweep in `place` names and that has no folder below it."""
    digits = name.rpartition("-seed")[2]
    seed = int(digits) if digits.isdecimal() else None
    return Run(name, f"{place}/runs/{name}", seed=seed, message="its folder is not here")


def collect(workdir: Path) -> Collection:
    """Every run below `workdir`, or in it: folders with a run.json, a results.json or a
    metrics.jsonl, and those of sweeps that have no folder yet.

    Raises:
        FileNotFoundError: if there is no run in it.
    """
    runs: list[Run] = []
    problems: list[str | OSError] = []
    sweeps: list[Path] = []
    for root, folders, files in os.walk(workdir, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(root)
        if "sweep.json" in files:
            sweeps.append(folder)
        if not set(MARKS).isdisjoint(files):
            folders.clear()  # what lies in a run belongs to it
            place = "" if folder == workdir else folder.relative_to(workdir).as_posix()
            run, own = read_run(folder, place)
            runs.append(run)
            problems += own
    for sweep in sweeps:
        inside = {run.name for run in runs if run.folder and sweep in run.folder.parents}
        place = sweep.relative_to(workdir).as_posix()
        try:
            names = map(str, read_json(sweep / "sweep.json").get("runs") or [])
            runs += [_planned(name, place) for name in names if name not in inside]
        except (ValueError, OSError) as error:
            problems.append(f"{place}/{str(error).replace(f'{sweep}/', '')}")
    if not runs:
        raise FileNotFoundError(
            f"{workdir} holds no run: no folder in it has one of {', '.join(MARKS)}. Start a sweep "
            "(python -m launch.sweep), or copy the runs there."
        )
    return Collection(tuple(runs), tuple(str(line).removeprefix("./") for line in problems))


# --- The summary: a collection in one file ---


def to_summary(collection: Collection) -> dict[str, Any]:
    """The collection as JSON values, without logs and without the folders it was read from."""

    def parts(run: Run) -> dict[str, dict[str, Any]]:
        return {
            name: {part: getattr(section, part) for part in OBJECTS}
            for name, section in run.sections.items()
        }

    runs = [run._asdict() | {"sections": parts(run)} for run in collection.runs]
    kept = [{k: v for k, v in run.items() if k not in ("folder", "log_tail")} for run in runs]
    return collection._asdict() | {"runs": kept}


def read_summary(path: Path) -> Collection:
    """The inverse of `to_summary`, for a summary of an older version of this program too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no summary of a report.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a summary.json, or a folder of runs.")
    content = read_json(path)
    try:
        runs = []
        for run in content["runs"]:
            sections = {**run["sections"], "train": run["train"]}
            runs.append(Run(**run | {"sections": measured(sections, run.get("training", {}))[0]}))
        return Collection(tuple(runs), tuple(content["problems"]), content.get("pictures", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no summary of a report ({error}): python -m launch.report writes one."
        ) from error


def load(path: Path) -> Collection:
    """The runs below a folder, or those of a summary."""
    return collect(path) if path.is_dir() else read_summary(path)
