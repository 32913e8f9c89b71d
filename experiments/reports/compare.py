"""Lays the numbers of runs side by side, and says which of them must not be compared.

    python -m experiments.compare runs/a/results.json runs/b/results.json

Two values of a quantity may be compared when the protocols behind them agree: the same images, as
many of them, the same extractor, decoder, quantization. Whatever is being compared on purpose, such
as the checkpoint, the sampler or the seed, may differ and is listed above the table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.files.atomic import read_json
from experiments.workdir.protocols import FREE, differences, renewed_protocol, written

Results = Mapping[str, Mapping[str, Any]]


def read(path: Path) -> Results:
    """The sections of a results.json that hold values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds none.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: name results.json files, or their folders."
        )
    sections = {name: section for name, section in read_json(path).items() if "values" in section}
    if not sections:
        raise ValueError(f"{path} holds no measured values yet: run --mode=evaluate.")
    return {
        name: section | {"protocol": renewed_protocol(section["protocol"])}
        for name, section in sections.items()
    }


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    error = value.get("standard_error")
    return f"{value['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _rows(section: str, all_results: Sequence[Results]) -> list[list[str]]:
    """One row per quantity of a section; the last cell says why values cannot be compared."""
    sections = [results.get(section) for results in all_results]
    protocols = [None if s is None else s["protocol"] for s in sections]
    unlike = differences(protocols)
    why = "; ".join(f"{name}: {' / '.join(map(str, v))}" for name, v in unlike.items())
    quantities = dict.fromkeys(name for s in sections if s is not None for name in s["values"])
    rows = []
    for quantity in quantities:
        values = [None if s is None else s["values"].get(quantity) for s in sections]
        shared = sum(value is not None for value in values) > 1
        verdict = "only one run has it" if not shared else f"NOT comparable: {why}" if why else ""
        rows.append([f"{section}.{quantity}", *map(_cell, values), verdict])
    return rows


def compare(names: Sequence[str], all_results: Sequence[Results]) -> str:
    """A Markdown table: quantities down, runs across, and what stands against comparing them."""
    lines = []
    for section in dict.fromkeys(name for results in all_results for name in results):
        for field in FREE:
            values = [
                results[section]["protocol"].get(field, "–") if section in results else "–"
                for results in all_results
            ]
            if len(set(map(str, values))) > 1:
                lines.append(f"{section}: {field} = {' / '.join(map(written, values))}")
    head = ["quantity", *names, "comparable?"]
    table = [head, ["---"] * len(head)]
    for section in dict.fromkeys(name for results in all_results for name in results):
        table += _rows(section, all_results)
    return "\n".join([*lines, "", *("| " + " | ".join(row) + " |" for row in table)])
