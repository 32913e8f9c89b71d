"""A working directory as far as it can be read: what a run was to do, did, and measured."""

import math
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.files.atomic import read_json
from experiments.workdir import status
from experiments.workdir.metrics_file import Record, read_records, windows
from experiments.workdir.outcome import FINAL
from experiments.workdir.protocols import PLACES, training_fields
from experiments.workdir.results import Section, measured

BOUND_POINTS = 10  # of a bound's curve that are kept


class Run(NamedTuple):
    """One working directory, as far as it can be read.

    name: of the run; `place` is its folder, relative to where the search began, "" for that.
    config: "experiments/configs/digits.py", or "" where no run.json says it.
    ablation: "" is the config itself; None where nothing says it.
    overrides: the grid point, dotted field -> value; `settings` are common to the whole sweep.
    state: as status.json has it, such as "diverged"; "waiting" for a run that has not begun, and
        "unfinished" for one that has and that no sweep keeps a status of.
    message: one line on that; `log_tail` is the end of a failed run's log.
    num_steps: of the whole training.
    train: the section "train" of results.json: step, reason, and the metrics of the last window
        that was in order, which the log has of a run that has not ended.
    images_per_second: of the training, the median of its windows.
    training_seconds: that its steps took, without pauses, over all attempts.
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
    images_per_second: float | None = None
    training_seconds: float | None = None
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
    def commit(self) -> str:
        """Ten digits of the code's commit, with the mark of uncommitted changes."""
        digits, dash, mark = str(self.origin.get("commit", "")).partition("-")
        return digits[:10] + dash + mark

    @property
    def date(self) -> str:
        """The day of the first numbers."""
        return str(self.origin.get("date", ""))[:10]

    @property
    def hardware(self) -> str:
        """As "1 x cpu (AMD EPYC, 2 cores)"."""
        match self.origin:
            case {"hardware": {"devices": devices, **others}}:
                return f"{devices} ({others.get('host', '')})"
        return ""

    @property
    def device_hours(self) -> float | None:
        """Hours of training, times the devices of the first numbers; None where not known."""
        devices = self.hardware.partition(" x ")[0]
        if self.training_seconds is None or not devices.isdecimal():
            return None
        return self.training_seconds * int(devices) / 3600

    @property
    def last_window(self) -> Mapping[str, Any]:
        """Metrics of the last window that was in order."""
        return self.train.get("metrics") or {}


def finite_windows(folder: Path | None) -> tuple[list[Record], int]:
    """The windows of a run's log whose loss is a number, and how many lines are damaged."""
    records, damaged = read_records(folder / "metrics.jsonl") if folder else ([], 0)
    return [window for window in windows(records) if math.isfinite(window["loss"])], damaged


def speed(log: list[Record], batch_size: Any) -> dict[str, float]:
    """The fields images_per_second and training_seconds of a training, from its windows."""
    rates: list[Any] = [window.get("images_per_second") for window in log]
    good = [isinstance(rate, float | int) and rate > 0 for rate in rates]
    if not (log and all(good) and isinstance(batch_size, int)):
        return {}
    steps = np.diff([0, *(window["step"] for window in log)])
    seconds = float(np.sum(steps * batch_size / np.array(rates, float)))
    return {"images_per_second": float(np.median(rates)), "training_seconds": seconds}


class _Reader:
    """The files of one folder; what is damaged becomes a problem instead of an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def complain(self, name: str, what: object) -> None:
        said = str(what).removeprefix(f"{self.folder / name} ").replace(f"{self.folder}/", "")
        self.problems.append(f"{name}: {said}")

    def object(self, name: str) -> dict[str, Any]:
        """The JSON object of a file; empty where there is none or it is damaged."""
        try:
            return read_json(self.folder / name) if (self.folder / name).is_file() else {}
        except (ValueError, OSError) as error:
            self.complain(name, error)
            return {}

    def field(self, content: Mapping[str, Any], field: str, name: str) -> dict[str, Any]:
        """A field that must be an object, of a file's content."""
        value = content.get(field, {})
        if isinstance(value, dict):
            return value
        self.complain(name, f"{field} is a {type(value).__name__}, not an object with fields.")
        return {}

    def status(self) -> status.Status:
        try:
            return status.read(self.folder)
        except (ValueError, OSError) as error:
            self.complain("status.json", error)
            return status.Status()

    def sections(self, results: Mapping[str, Any]) -> dict[str, Section]:
        """What was measured, without the copy of the config that every section has."""
        found, problems = measured(results)
        for problem in problems:
            self.complain("results.json", problem)
        kept = {name: dict(section.provenance) for name, section in found.items()}
        for provenance in kept.values():
            provenance.pop("config", None)
        return {name: part._replace(provenance=kept[name]) for name, part in found.items()}

    def bound(self) -> dict[Any, Any]:
        """Rate and distortion at tenths of the chain, from bound.csv."""
        path = self.folder / "bound.csv"
        try:
            table = pd.read_csv(path, dtype=float) if path.is_file() else pd.DataFrame()
            if table.empty:
                return {}
            kept = table[table["reverse_time"] % max(1, len(table) // BOUND_POINTS) == 0]
            return kept.set_index(kept["reverse_time"].map("{:.0f}".format)).to_dict("index")
        except (ValueError, KeyError) as error:
            self.complain("bound.csv", f"is damaged: {error}")
            return {}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _past(train: Mapping[str, Any]) -> str:
    """With the weights of which run a training began, and from where it went on as another one.

    As results.json says it.
    """
    past, began = train.get("continued"), _began(train)
    said = [f"began with the weights of {began}"] if began else []
    for each in past if isinstance(past, list) else []:
        if not isinstance(each, dict):
            continue
        how = "with other images"
        if "diverged_at" in each:
            how = f"after it diverged at step {each['diverged_at']}"
        said.append(_one_line(f"continued {how} from step {each.get('step')}"))
    return ", ".join(said)


def _began(train: Mapping[str, Any]) -> str:
    """The run with whose weights a training began, and its step; "" where it was none."""
    origin = train.get("origin")
    if not isinstance(origin, dict):
        return ""
    how = " and its optimizer" if origin.get("optimizer") else ""
    return _one_line(f"{origin.get('run')}, step {origin.get('step')}{how}")


def _state(found: status.Status, ended: str | None, any_values: bool, folder: Path) -> str:
    """What the sweep wrote down; of a run outside a sweep, what its files tell."""
    if (folder / "status.json").is_file():
        return found.state
    if ended in [end.value for end in FINAL]:
        return str(ended)
    if any_values:
        return "finished"
    return "unfinished" if (folder / "metrics.jsonl").is_file() else "waiting"


def read_run(folder: Path, place: str) -> tuple[Run, list[str]]:
    """The run in a folder, and what could not be read, one line each.

    Args:
        folder: holds run.json or results.json.
        place: what to call it.
    """
    reader = _Reader(folder)
    about, results, known = (
        reader.object("run.json"),
        reader.object("results.json"),
        reader.status(),
    )
    sections = reader.sections(results)
    train, sample = (reader.field(results, part, "results.json") for part in ("train", "sample"))
    own = [part.get("provenance") for part in results.values() if isinstance(part, dict)]
    origin = next((found for found in own if isinstance(found, dict)), {})
    config = reader.object("config.json") or origin.get("config", {})
    training = training_fields(config)
    if training and _began(train):
        training["from"] = _began(train)
    log, damaged = finite_windows(folder)
    if damaged:
        reader.complain("metrics.jsonl", f"{damaged} lines cannot be read.")
    if log and not train.get("metrics"):
        train = {**train, "metrics": log[-1]}
    seed = about.get("seed", origin.get("seed", config.get("seed")))
    settings = reader.field(about, "settings", "run.json")
    run = Run(
        name=str(about.get("name", folder.name)),
        place=place,
        config=str(about.get("config", "")),
        ablation=about.get("ablation"),
        seed=seed if isinstance(seed, int) else None,
        overrides=reader.field(about, "overrides", "run.json"),
        settings={name: value for name, value in settings.items() if name not in PLACES},
        state=_state(known, train.get("state"), bool(sections), folder),
        message="; ".join(
            filter(None, (_one_line(train.get("reason") or known.message), _past(train)))
        ),
        log_tail=known.log_tail,
        attempts=len(known.attempts),
        num_steps=training.get("train.num_steps", about.get("num_steps")),
        train={name: value for name, value in train.items() if name != "provenance"},
        **speed(log, training.get("train.batch_size")),
        sample={name: value for name, value in sample.items() if name != "provenance"},
        sections=sections,
        training=training,
        bound=reader.bound(),
        folder=folder,
    )
    return run, [posixpath.join(place, problem) for problem in reader.problems]
