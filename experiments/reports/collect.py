"""Reads the runs below a folder, or out of a report's summary, and never writes to them."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.files.atomic import read_json
from experiments.workdir.metrics_file import Record, read_records, windows
from experiments.workdir.outcome import FINAL
from experiments.workdir.protocols import TRAINING, renewed
from experiments.workdir.results import Section, measured

# What decides which model a run trains, apart from its seed, and where its data lies.
DEFINING = ("data", *(f for f in TRAINING if f not in ("seed", "data.name")), "train.num_steps")
PLACES = ("data.data_dir", "data.path")
BOUND_POINTS = 10  # of a bound's curve that are kept


class Run(NamedTuple):
    """One working directory, as far as it can be read.

    name: of the run; `place` is its folder, relative to where the search began.
    config: "experiments/configs/digits.py", or "" where no run.json says it.
    ablation: "" is the config itself; None where nothing says it.
    overrides: the grid point, dotted field -> value; `settings` are common to the whole sweep.
    state: as status.json has it, such as "diverged"; "waiting" for a run that has not begun, and
        "unfinished" for one that has and that no sweep keeps a status of.
    message: one line on that; `log_tail` is the end of a failed run's log.
    num_steps: of the whole training.
    train: the section "train" of results.json: step, reason, and the metrics of the last window
        that was in order, which the log has of a run that has not ended.
    sample: the section "sample": sampler, number of steps.
    sections: what was measured.
    training: the resolved config's fields that decide the model, flat; empty where not known.
    bound: reverse time -> {"rate", "rmse_root_of_mean", ...}, at tenths of the chain.
    folder: where it lies; None for one read out of a summary.
    """

    name: str
    place: str
    config: str = ""
    ablation: str | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    state: str = "waiting"
    message: str = ""
    log_tail: tuple[str, ...] = ()
    attempts: int = 0
    num_steps: int | None = None
    train: Mapping[str, Any] = {}
    sample: Mapping[str, Any] = {}
    sections: Mapping[str, Section] = {}
    training: Mapping[str, Any] = {}
    bound: Mapping[str, Mapping[str, float]] = {}
    folder: Path | None = None

    @property
    def origin(self) -> Mapping[str, Any]:
        """The provenance of the run's first numbers."""
        return next((section.provenance for section in self.sections.values()), {})

    @property
    def hardware(self) -> str:
        """As "1 x cpu (AMD EPYC, 2 cores)"."""
        found = self.origin.get("hardware", {})
        return f"{found['devices']} ({found.get('host', '')})" if "devices" in found else ""

    @property
    def last_window(self) -> Mapping[str, Any]:
        """Metrics of the last window that was in order."""
        return self.train.get("metrics") or {}


class Collection(NamedTuple):
    """What there is to report.

    runs: in the order of their folders.
    problems: what could not be read, one line each.
    pictures: what was drawn of the runs, as `figures.draw` returns it; only of a summary.
    """

    runs: tuple[Run, ...]
    problems: tuple[str, ...] = ()
    pictures: Mapping[str, Any] = {}


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, under dotted names."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def training_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a resolved config as JSON has it: the fields that decide which model is trained."""
    return {
        name: value
        for name, value in flat(renewed(config)).items()
        if name not in PLACES and any(f"{name}.".startswith(f"{field}.") for field in DEFINING)
    }


def finite_windows(folder: Path | None) -> tuple[list[Record], int]:
    """The windows of a run's log whose loss is a number, and how many lines are damaged."""
    records, damaged = read_records(folder / "metrics.jsonl") if folder else ([], 0)
    return [window for window in windows(records) if math.isfinite(window["loss"])], damaged


class _Reader:
    """Files below one folder; what is damaged becomes a problem instead of an error."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.problems: list[str] = []

    def place(self, path: Path) -> str:
        return path.relative_to(self.workdir).as_posix()

    def complain(self, path: Path, what: object) -> None:
        self.problems.append(f"{self.place(path)}: {what}".replace(f"{self.workdir}/", ""))

    def object(self, path: Path) -> dict[str, Any]:
        """The JSON object of a file; empty where there is none or it is damaged."""
        if not path.is_file():
            return {}
        try:
            return read_json(path)
        except (ValueError, OSError) as error:
            self.complain(path, str(error).removeprefix(f"{path} "))
            return {}

    def mapping(self, content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
        """A field that must be an object."""
        value = content.get(name, {})
        if isinstance(value, dict):
            return value
        self.complain(path, f"{name} is a {type(value).__name__}, not an object with fields.")
        return {}

    def bound(self, path: Path) -> dict[Any, Any]:
        """Rate and distortion at tenths of the chain, from bound.csv."""
        if not path.is_file():
            return {}
        try:
            table = pd.read_csv(path, dtype=float)
            kept = table[table["reverse_time"] % max(1, len(table) // BOUND_POINTS) == 0]
            return kept.set_index(kept["reverse_time"].map("{:.0f}".format)).to_dict("index")
        except (ValueError, KeyError) as error:
            self.complain(path, f"is damaged: {error}")
            return {}

    def run(self, folder: Path) -> Run:
        """One folder that holds run.json or results.json."""
        about = self.object(folder / "run.json")
        status = self.object(folder / "status.json")
        results, path = self.object(folder / "results.json"), folder / "results.json"
        sections, problems = measured(results)
        for problem in problems:
            self.complain(path, problem)
        own = [part.get("provenance") for part in results.values() if isinstance(part, dict)]
        origin = next((found for found in own if isinstance(found, dict)), {})
        config = self.object(folder / "config.json") or origin.get("config", {})
        training = training_fields(config)
        train, sample = (
            {
                name: v
                for name, v in self.mapping(results, part, path).items()
                if name != "provenance"
            }
            for part in ("train", "sample")
        )
        log = finite_windows(folder)[0]
        if log and not train.get("metrics"):
            train = {**train, "metrics": log[-1]}
        seed = about.get("seed", origin.get("seed", config.get("seed")))
        settings = self.mapping(about, "settings", folder / "run.json")
        return Run(
            name=str(about.get("name", folder.name)),
            place=self.place(folder),
            config=str(about.get("config", "")),
            ablation=about.get("ablation"),
            seed=seed if isinstance(seed, int) else None,
            overrides=self.mapping(about, "overrides", folder / "run.json"),
            settings={k: v for k, v in settings.items() if k not in PLACES},
            state=_state(status, train, bool(sections), folder),
            message=" ".join(str(train.get("reason") or status.get("message", "")).split()),
            log_tail=tuple(map(str, status.get("log_tail") or ())),
            attempts=len(status.get("attempts") or ()),
            num_steps=training.get("train.num_steps", about.get("num_steps")),
            train=train,
            sample=sample,
            sections={name: _without_config(section) for name, section in sections.items()},
            training=training,
            bound=self.bound(folder / "bound.csv"),
            folder=folder,
        )

    def planned(self, sweep: Path, found: set[str]) -> Iterator[Run]:
        """Runs that a sweep names and that have no folder below it."""
        for name in map(str, self.object(sweep / "sweep.json").get("runs") or ()):
            if name not in found:
                seed = name.rpartition("-seed")[2]
                yield Run(
                    name=name,
                    place=self.place(sweep / "runs" / name),
                    seed=int(seed) if seed.isdecimal() else None,
                    message="its folder is not here",
                )


def _without_config(section: Section) -> Section:
    kept = {name: value for name, value in section.provenance.items() if name != "config"}
    return section._replace(provenance=kept)


def _state(status: Mapping[str, Any], train: Mapping[str, Any], any_values: bool, at: Path) -> str:
    """What the sweep wrote down; of a run outside a sweep, what its files tell."""
    if "state" in status:
        return str(status["state"])
    if train.get("state") in [end.value for end in FINAL]:
        return str(train["state"])
    if any_values:
        return "finished"
    return "unfinished" if (at / "metrics.jsonl").is_file() else "waiting"


def collect(workdir: Path) -> Collection:
    """Every run below `workdir`: folders with a run.json or a results.json, and those of sweeps
    that have no folder yet.

    Raises:
        FileNotFoundError: if there is no run in it.
    """
    reader = _Reader(workdir)
    runs: list[Run] = []
    sweeps: list[Path] = []

    def unreadable(error: OSError) -> None:
        reader.problems.append(str(error))

    for root, folders, files in os.walk(workdir, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "sweep.json" in files:
            sweeps.append(Path(root))
        if "run.json" in files or "results.json" in files:
            folders.clear()  # what lies in a run belongs to it
            runs.append(reader.run(Path(root)))
    for sweep in sweeps:
        inside = {run.name for run in runs if run.folder and sweep in run.folder.parents}
        runs += reader.planned(sweep, inside)
    if not runs:
        raise FileNotFoundError(
            f"{workdir} holds no run: no folder below it has a run.json or a results.json. Start a "
            "sweep (python -m launch.sweep), or copy the runs there."
        )
    return Collection(tuple(runs), tuple(reader.problems))


# --- The summary: a collection in one file ---


def to_summary(collection: Collection) -> dict[str, Any]:
    """The collection as JSON values, without logs and without the folders it was read from."""
    runs = [
        run._asdict() | {"sections": {k: part._asdict() for k, part in run.sections.items()}}
        for run in collection.runs
    ]
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
        runs = [Run(**run | {"sections": measured(run["sections"])[0]}) for run in content["runs"]]
        return Collection(tuple(runs), tuple(content["problems"]), content.get("pictures", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no summary of a report ({error}): python -m launch.report writes one."
        ) from error


def load(path: Path) -> Collection:
    """The runs below a folder, or those of a summary.

    Raises:
        FileNotFoundError, ValueError: for a path that is neither.
    """
    return collect(path) if path.is_dir() else read_summary(path)
