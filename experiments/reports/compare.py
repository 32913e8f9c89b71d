"""Lays the numbers of runs side by side, and says which of them must not be compared.

Two values of a quantity may be compared when the protocols behind them agree: the same images, as
many of them, the same extractor, decoder, quantization. Whatever is being compared on purpose, such
as the checkpoint, the sampler or the seed, may differ and is listed above the table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.files import markdown
from experiments.files.atomic import read_json
from experiments.reports.averages import show
from experiments.workdir.protocols import FREE, differences, renewed_protocol, written
from experiments.workdir.results import Section, measured

Sections = Mapping[str, Section]


def read(path: Path) -> Sections:
    """The sections of a results.json that hold values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds none, or some that cannot be read.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: name results.json files, or their folders."
        )
    sections, problems = measured(read_json(path))
    if problems:
        raise ValueError(f"{path}, {problems[0]}")
    if not sections:
        raise ValueError(f"{path} holds no measured values yet: run --mode=evaluate.")
    return sections


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    error = value.get("standard_error")
    return show(value["value"]) + ("" if error is None else f" ± {error:.2g}")


def _rows(name: str, runs: Sequence[Sections]) -> list[list[str]]:
    """One row per quantity of a section; the last cell says why values cannot be compared."""
    sections = [sections.get(name) for sections in runs]
    unlike = differences([section and section.protocol for section in sections])
    why = "; ".join(f"{field}: {' / '.join(map(str, v))}" for field, v in unlike.items())
    rows = []
    for quantity in dict.fromkeys(key for section in sections if section for key in section.values):
        values = [section.values.get(quantity) if section else None for section in sections]
        shared = sum(value is not None for value in values) > 1
        verdict = "only one run has it" if not shared else f"NOT comparable: {why}" if why else ""
        rows.append([f"{name}.{quantity}", *map(_cell, values), verdict])
    return rows


# Metrics that bound -log p(x) of the same images, each of its kind of model.
BOUNDS = ("bpd", "elbo", "latent_bound")
# Of their protocols, what must agree before bounds of unlike models may be compared.
OF_IMAGES = (
    *("dataset", "fingerprint", "split", "num_images", "split_images"),
    *("num_levels", "precision", "held_out"),
)


def _bound_row(runs: Sequence[Sections]) -> list[list[str]]:
    """One row of the bounds of unlike models, where there are some."""
    found = [
        next((sections[name] for name in BOUNDS if name in sections), None) for sections in runs
    ]
    kinds = {name for sections in runs for name in BOUNDS if name in sections}
    if len(kinds) < 2 or sum(section is not None for section in found) < 2:
        return []
    values = [section and section.values.get("bits_per_dim") for section in found]
    protocols = [section and renewed_protocol(section.protocol) for section in found]
    of_images = [p and {field: p.get(field) for field in OF_IMAGES} for p in protocols]
    unlike = differences(of_images)
    why = "; ".join(f"{field}: {' / '.join(map(str, v))}" for field, v in unlike.items())
    label = f"bits_per_dim ({' or '.join(name for name in BOUNDS if name in kinds)})"
    return [[label, *map(_cell, values), f"NOT comparable: {why}" if why else "bounds of models"]]


def compare(names: Sequence[str], runs: Sequence[Sections]) -> str:
    """A Markdown table: quantities down, runs across, and what stands against comparing them."""
    sections = dict.fromkeys(name for found in runs for name in found)
    lines = []
    for name in sections:
        protocols = [found[name].protocol if name in found else {} for found in runs]
        for field in FREE:
            values = [written(protocol.get(field, "–")) for protocol in protocols]
            if len(set(values)) > 1:
                lines.append(f"{name}: {field} = {' / '.join(values)}")
        older = [found[name].older if name in found else "" for found in runs]
        lines += [f"{name}: {who} is {why}" for who, why in zip(names, older, strict=True) if why]
    rows = _bound_row(runs) + [row for name in sections for row in _rows(name, runs)]
    return "\n".join([*lines, "", markdown.table(["quantity", *names, "comparable?"], rows)])
