"""results.json of a working directory: its one reader and its one writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.files.atomic import read_json, write_json
from experiments.workdir.protocols import renewed_protocol


class Section(NamedTuple):
    """What one metric measured.

    values: quantity -> {"value": number, "standard_error": number, where there is one}.
    protocol: what the values are of; an older one with the fields that it lacks.
    provenance: seed, commit, versions, hardware and date.
    """

    values: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]


def read_results(workdir: Path) -> dict[str, Any]:
    """The sections of the run's results.json; empty where nothing was recorded."""
    path = workdir / "results.json"
    return read_json(path) if path.is_file() else {}


def measured(results: Mapping[str, Any]) -> tuple[dict[str, Section], list[str]]:
    """The sections that hold values, of the content of a results.json.

    Returns:
        What can be read of them, and a line on everything that cannot.
    """
    found, problems = {}, []
    for name, content in results.items():
        if not isinstance(content, dict) or "values" not in content:
            continue
        parts = [content.get(part, {}) for part in Section._fields]
        if not all(isinstance(part, dict) for part in parts):
            words = ", ".join(Section._fields)
            problems.append(f"section {name}: one of {words} is no object with fields.")
            continue
        values, protocol, provenance = parts
        good = {
            quantity: number
            for quantity, number in values.items()
            if isinstance(number, dict) and isinstance(number.get("value"), int | float)
        }
        lost = ", ".join(sorted(values.keys() - good)) if protocol else "its protocol"
        if lost:
            problems.append(f"section {name}: {lost} cannot be read.")
        if good and protocol:
            found[name] = Section(good, renewed_protocol(protocol), provenance)
    return found, problems


def write_results(workdir: Path, section: str, results: dict[str, Any], config: ConfigDict) -> None:
    """Adds or replaces one section (train, sample, evaluate, convert) of the run's results.json."""
    from experiments.workdir.provenance import provenance  # needs jax, which readers do without

    section_with_origin = results | {"provenance": provenance(config)}
    write_json(workdir / "results.json", read_results(workdir) | {section: section_with_origin})
