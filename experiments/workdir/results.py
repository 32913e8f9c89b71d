"""results.json of a working directory: its one reader and its one writer."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.files.atomic import read_json, write_json
from experiments.workdir.provenance import provenance


def read_results(workdir: Path) -> dict[str, Any]:
    """The sections of the run's results.json; empty where nothing was recorded."""
    path = workdir / "results.json"
    return read_json(path) if path.is_file() else {}


def write_results(workdir: Path, section: str, results: dict[str, Any], config: ConfigDict) -> None:
    """Adds or replaces one section (train, sample, evaluate, convert) of the run's results.json."""
    section_with_origin = results | {"provenance": provenance(config)}
    write_json(workdir / "results.json", read_results(workdir) | {section: section_with_origin})
