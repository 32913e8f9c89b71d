"""Reads the runs below a folder, or out of a report's summary, and never writes to them."""

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files.atomic import read_json
from experiments.workdir.protocols import TRAINING, renewed

# What decides which model a run trains, apart from its seed, and where its data lies.
DEFINING = ("data", *(f for f in TRAINING if f not in ("seed", "data.name")), "train.num_steps")
PLACES = ("data.data_dir", "data.path")
PARTS = 10  # points of a bound's curve that are kept


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
    train: the section "train" of results.json: step, metrics, reason.
    sample: the section "sample": sampler, number of steps.
    sections: name -> {"values", "protocol", "provenance"} of what was measured.
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
    sections: Mapping[str, Mapping[str, Any]] = {}
    training: Mapping[str, Any] = {}
    bound: Mapping[str, Mapping[str, float]] = {}
    folder: Path | None = None


class Collection(NamedTuple):
    """The runs in the order of their folders, and what could not be read, one line each."""

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


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

    def sections(self, results: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
        """The sections that hold values, each value a number under "value"."""
        found = {}
        for name, section in results.items():
            if not isinstance(section, dict) or "values" not in section:
                continue
            values = self.mapping(section, "values", path)
            protocol = self.mapping(section, "protocol", path)
            origin = self.mapping(section, "provenance", path)
            good = {k: v for k, v in values.items() if _is_value(v)}
            if len(good) < len(values) or not protocol:
                what = ", ".join(sorted(set(values) - set(good))) or "its protocol"
                self.complain(path, f"section {name}: {what} cannot be read.")
            if good and protocol:
                origin = {k: v for k, v in origin.items() if k != "config"}
                found[name] = {"values": good, "protocol": protocol, "provenance": origin}
        return found

    def bound(self, path: Path) -> dict[str, dict[str, float]]:
        """Rate and distortion at tenths of the chain, from bound.csv."""
        if not path.is_file():
            return {}
        try:
            with path.open(newline="") as stream:
                rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
            wanted = max(1, len(rows) // PARTS)
            return {
                f"{row['reverse_time']:.0f}": row
                for row in rows
                if not row["reverse_time"] % wanted
            }
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            self.complain(path, f"is damaged: {error}")
            return {}


def _is_value(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("value"), int | float)


def _state(status: Mapping[str, Any], train: Mapping[str, Any], folder: Path, results: Any) -> str:
    """What the sweep wrote down; of a run outside a sweep, what its files tell."""
    if "state" in status:
        return str(status["state"])
    if train.get("state") in ("finished", "diverged"):
        return str(train["state"])
    if any("values" in section for section in results.values() if isinstance(section, dict)):
        return "finished"
    return "unfinished" if (folder / "metrics.jsonl").is_file() else "waiting"


def _without_origin(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != "provenance"}


def read_run(folder: Path, reader: _Reader) -> Run:
    """One folder that holds run.json or results.json."""
    about = reader.object(folder / "run.json")
    status = reader.object(folder / "status.json")
    results = reader.object(folder / "results.json")
    train = reader.mapping(results, "train", folder / "results.json")
    origins = [
        s["provenance"] for s in results.values() if isinstance(s, dict) and "provenance" in s
    ]
    origin = next((origin for origin in origins if isinstance(origin, dict)), {})
    config = reader.object(folder / "config.json") or origin.get("config", {})
    seed = about.get("seed", origin.get("seed", config.get("seed")))
    settings = reader.mapping(about, "settings", folder / "run.json")
    reason, training = train.get("reason", ""), training_fields(config)
    return Run(
        name=str(about.get("name", folder.name)),
        place=reader.place(folder),
        config=str(about.get("config", "")),
        ablation=about.get("ablation"),
        seed=seed if isinstance(seed, int) else None,
        overrides=reader.mapping(about, "overrides", folder / "run.json"),
        settings={k: v for k, v in settings.items() if k not in PLACES},
        state=_state(status, train, folder, results),
        message=" ".join(str(reason or status.get("message", "")).split()),
        log_tail=tuple(map(str, status.get("log_tail") or ())),
        attempts=len(status.get("attempts") or ()),
        num_steps=training.get("train.num_steps", about.get("num_steps")),
        train=_without_origin(train),
        sample=_without_origin(reader.mapping(results, "sample", folder / "results.json")),
        sections=reader.sections(results, folder / "results.json"),
        training=training,
        bound=reader.bound(folder / "bound.csv"),
        folder=folder,
    )


def _planned(sweep: Path, found: set[str], reader: _Reader) -> Iterator[Run]:
    """Runs that a sweep names and that have no folder below it."""
    content = reader.object(sweep / "sweep.json")
    for name in map(str, content.get("runs") or ()):
        if name not in found:
            seed = name.rpartition("-seed")[2]
            yield Run(
                name=name,
                place=reader.place(sweep / "runs" / name),
                seed=int(seed) if seed.isdecimal() else None,
                message="its folder is not here",
            )


def collect(workdir: Path) -> Collection:
    """Every run below `workdir`: folders with a run.json or a results.json, and those of sweeps
    that have no folder yet.

    Raises:
        FileNotFoundError: if there is no such folder, or no run in it.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(
            f"{workdir} does not exist: name the folder of a sweep, or of runs."
        )
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
            runs.append(read_run(Path(root), reader))
    for sweep in sweeps:
        inside = {run.name for run in runs if run.folder and sweep in run.folder.parents}
        runs += _planned(sweep, inside, reader)
    if not runs:
        raise FileNotFoundError(
            f"{workdir} holds no run: no folder below it has a run.json or a results.json. Start a "
            "sweep (python -m launch.sweep), or copy the runs there."
        )
    return Collection(tuple(runs), tuple(reader.problems))


# --- The summary: a collection in one file ---


def to_summary(collection: Collection) -> dict[str, Any]:
    """The collection as JSON values, without logs and without the folders it was read from."""
    apart = ("folder", "log_tail")
    runs = [
        {name: value for name, value in run._asdict().items() if name not in apart}
        for run in collection.runs
    ]
    return {"runs": runs, "problems": list(collection.problems)}


def read_summary(path: Path) -> Collection:
    """The inverse of `to_summary`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no summary of a report.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a summary.json, or a folder of runs.")
    content = read_json(path)
    try:
        runs = tuple(Run(**run) for run in content["runs"])
        return Collection(runs, tuple(content["problems"]))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no summary of a report ({error}): python -m launch.report writes one."
        ) from error
