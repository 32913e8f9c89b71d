"""results.json of a working directory: its one reader, its one writer, where numbers come from."""

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.files.atomic import number, read_json, write_json
from experiments.workdir.config import config_to_dict
from experiments.workdir.protocols import flat, renewed_protocol

UNKNOWN = "unknown"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy")
OBJECTS = ("values", "protocol", "provenance")  # of a section that holds values


class Section(NamedTuple):
    """What one metric measured.

    values: quantity -> {"value": number, "standard_error": number, where there is one}.
    protocol: what the values are of; an older one with the fields that it lacks.
    provenance: seed, commit, versions, hardware and date.
    trained_to: the last step of the run's training; None where that is not known.
    """

    values: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    trained_to: int | None = None

    @property
    def older(self) -> str:
        """A note on values of other parameters than the training ended with; "" where of those."""
        step, last = self.protocol.get("checkpoint_step"), self.trained_to
        if not isinstance(step, int) or not isinstance(last, int) or step == last:
            return ""
        return f"of step {step:,}, and the training ended at step {last:,}"


def read_results(workdir: Path) -> dict[str, Any]:
    """The sections of the run's results.json; empty where nothing was recorded."""
    path = workdir / "results.json"
    found = read_json(path) if path.is_file() else {}
    for section in found.values():
        match section:
            case {"metrics": {**metrics}}:
                section["metrics"] = {name: number(value) for name, value in metrics.items()}
    return found


def measured(
    results: Mapping[str, Any], known: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, Section], list[str]]:
    """The sections that hold values, of the content of a results.json.

    Args:
        known: dotted fields of the run's config, for sections that do not hold it.

    Returns:
        What can be read of them, and a line on everything that cannot.
    """
    found, problems = {}, []
    train = results.get("train")
    last = train.get("step") if isinstance(train, dict) else None
    for name, content in results.items():
        if not isinstance(content, dict) or "values" not in content:
            continue
        parts = [content.get(part, {}) for part in OBJECTS]
        if not all(isinstance(part, dict) for part in parts):
            words = ", ".join(OBJECTS)
            problems.append(f"section {name}: one of {words} is no object with fields.")
            continue
        values, protocol, provenance = parts
        numbers = {
            quantity: {name: number(item) for name, item in entry.items()}
            for quantity, entry in values.items()
            if isinstance(entry, dict)
        }
        good = {
            quantity: entry
            for quantity, entry in numbers.items()
            if isinstance(entry.get("value"), int | float)
        }
        lost = ", ".join(sorted(values.keys() - good)) if protocol else "its protocol"
        if lost:
            problems.append(f"section {name}: {lost} cannot be read.")
        if good and protocol:
            fields = dict(known) | flat(provenance.get("config", {}))
            if "seed" in provenance:
                fields["seed"] = provenance["seed"]
            found[name] = Section(good, renewed_protocol(protocol, fields), provenance, last)
    return found, problems


@functools.cache
def git_commit() -> str:
    """The commit of this code, marked where files differ from it; UNKNOWN outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What a number needs beside it: config, seed, commit, versions, hardware and date."""
    import jax  # which those who only read results do without

    from experiments.devices import REPORTED

    devices = jax.devices()
    return {
        "config": config_to_dict(config),
        "seed": config.seed,
        "commit": git_commit(),
        "precision": {
            "training and sampling": config.precision,
            "likelihoods and distances": REPORTED,
        },
        "versions": {name: metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "hardware": {
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "processes": jax.process_count(),
            "host": f"{_processor()}, {os.cpu_count()} cores",
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_results(workdir: Path, section: str, results: dict[str, Any], config: ConfigDict) -> None:
    """Adds or replaces one section (train, sample, evaluate, convert) of the run's results.json."""
    section_with_origin = results | {"provenance": provenance(config)}
    write_json(workdir / "results.json", read_results(workdir) | {section: section_with_origin})
