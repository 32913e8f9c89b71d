"""metrics.jsonl of a working directory: its one reader and its one writer."""

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from experiments.reports.collect import Run


def drop_lines_after(path: Path, step: int) -> None:
    """Removes from a JSONL file the lines beyond `step`, and a half-written last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def windows(run: Run) -> tuple[list[dict[str, float]], int]:
    """The records of metrics.jsonl that have a loss, and how many lines could not be read.

    A last line without an end is what a run being written looks like, and is not counted.
    """
    path = None if run.folder is None else run.folder / "metrics.jsonl"
    if path is None or not path.is_file():
        return [], 0
    text = path.read_text(errors="replace")
    lines, found, damaged = text.splitlines(), [], 0
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if "loss" in record:
                found.append({"step": int(record["step"]), "loss": float(record["loss"])})
        except (ValueError, KeyError, TypeError):
            damaged += number < len(lines) or text.endswith("\n")
    return found, damaged


class Progress(NamedTuple):
    """The last line of a run's log of metrics."""

    step: int = 0
    loss: float | None = None
    eta_seconds: float | None = None  # of the training


def progress(folder: Path) -> Progress:
    """How far the training in `folder` is; a line that is half written does not count."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return Progress()
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError):
            metrics = json.loads(line)
            return Progress(metrics["step"], metrics["loss"], metrics["eta_seconds"])
    return Progress()
