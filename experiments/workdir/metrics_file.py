"""metrics.jsonl of a working directory: how it is read, and cut back to a step.

A line is a record: the means of one window of the training, with its "loss", or a number between
windows, such as a validation's. `TrainingLog` appends them.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files.atomic import number, strict_json, write_text

Record = dict[str, Any]


def read_records(path: Path, last_bytes: int | None = None) -> tuple[list[Record], int]:
    """The records of a file, and how many of its lines are damaged: no JSON object with a "step".

    A last line without an end is one that is being written, or was when the program died: it is
    left out and does not count.

    Args:
        path: of the file; where there is none it has no records.
        last_bytes: read only this much of the end, so that the first line may be cut.
    """
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 0 if last_bytes is None else max(0, size - last_bytes)
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    records, damaged = [], 0
    for line in lines[start > 0 :]:
        try:
            record = {name: number(value) for name, value in json.loads(line).items()}
            if not 0 <= record["step"] < 2**53:
                raise ValueError("no step")
            records.append(record | {"step": int(record["step"])})
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            damaged += 1
    return records, damaged


def windows(records: Iterable[Record]) -> list[Record]:
    """The records that are windows of the training."""
    return [record for record in records if isinstance(record.get("loss"), float | int)]


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the records beyond `step`, and whatever is damaged."""
    if not path.is_file():
        return
    kept = [record for record in read_records(path)[0] if record["step"] <= step]
    write_text(path, "".join(strict_json(record) + "\n" for record in kept))


class Progress(NamedTuple):
    """The last window of a training's log."""

    step: int = 0
    loss: float | None = None
    eta_seconds: float | None = None  # of the training


def progress(folder: Path) -> Progress:
    """How far the training in `folder` is."""
    found = windows(read_records(folder / "metrics.jsonl", last_bytes=4096)[0])
    if not found:
        return Progress()
    return Progress(found[-1]["step"], found[-1]["loss"], found[-1].get("eta_seconds"))
