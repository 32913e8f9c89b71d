"""The paper's cells beside measured numbers, and when a run is what a cell is about."""

import functools
import importlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from experiments.configs import published
from experiments.configs.published import COLUMNS, REVERSE_TIME, PaperColumn, PaperRow
from experiments.reports.render import Link
from experiments.workdir.protocols import differences, renewed_protocol, training_fields
from experiments.workdir.run import Run

LINK = Link("Ho et al. 2020", "https://arxiv.org/abs/2006.11239")


@functools.cache
def expected_training(config: str, ablation: str) -> Mapping[str, Any]:
    """The fields that decide which model experiments/configs/CONFIG.py:ABLATION trains."""
    resolved = importlib.import_module(f"experiments.configs.{config}").get_config(ablation)
    return MappingProxyType(training_fields(json.loads(resolved.to_json_best_effort())))


def deviations(run: Run, row: PaperRow) -> dict[str, list[Any]]:
    """In which fields the run's model is not the row's: field -> [row's, run's]."""
    return differences([expected_training(row.config, row.ablation), run.training], free=())


def protocol_deviations(run: Run, column: PaperColumn) -> dict[str, list[Any]]:
    """In which fields the run's evaluation is not the paper's: field -> [paper's, run's]."""
    protocol = renewed_protocol(run.sections[column.section].protocol)
    wanted = dict(column.protocol) | published.COMMON
    # The config tells what the training was to be, these what was measured of it.
    wanted["checkpoint_step"] = run.training.get("train.num_steps")
    wanted["variance"] = run.training.get("variance.name")
    if column.section == "bpd":
        wanted["num_images"] = protocol.get("split_images")
    else:
        wanted["num_steps"] = run.training.get("schedule.num_timesteps")
    found = {name: protocol.get(name, "absent") for name in wanted}
    return differences([wanted, found], free=())


def is_row(run: Run, row: PaperRow) -> bool:
    """Whether the run trained the very model of the row.

    Which pictures a folder holds no config tells: there the config file has to be the row's.
    """
    pictures = run.training.get("data.name") == "image_folder"
    if pictures and PurePosixPath(run.config).stem != row.config:
        return False
    return bool(run.training) and not deviations(run, row)


def is_about(run: Run, row: PaperRow) -> bool:
    """Whether the run is the row's ablation, on whatever data and with whatever else changed."""
    if is_row(run, row):
        return True
    same_config = PurePosixPath(run.config).stem == row.config
    return run.ablation == row.ablation and (bool(row.ablation) or same_config)


def reverse_time(row: PaperRow) -> str | None:
    """For a row of Table 4 that is one point of the chain: which."""
    found = row.label.removeprefix(REVERSE_TIME)
    return found if found != row.label else None


def column_of(run: Run, section: str, quantity: str) -> str | None:
    """The paper's column that a quantity of the run belongs to."""
    protocol = run.sections[section].protocol if section in run.sections else {}
    split = protocol.get("split", "test")
    for name, column in COLUMNS.items():
        if column.holds(section, quantity) and column.protocol.get("split", split) == split:
            return name
    return None


def published_beside(run: Run, section: str, quantity: str) -> tuple[str, str]:
    """The first cell of the paper for the run's ablation and this quantity, and its heading, as
    "paper: FID, CIFAR-10"; empty where there is none.
    """
    name = column_of(run, section, quantity)
    for table in published.TABLES.values():
        for row in table.rows:
            if name and name in row.cells and reverse_time(row) is None and is_about(run, row):
                dataset = table.dataset.partition(",")[0]
                return row.cells[name].text, f"paper: {table.columns[name]}, {dataset}"
    return "", ""
