"""Files and folders that others see whole or not at all."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.files.contents import refuse_other

LARGEST = int(sys.float_info.max)
# What JSON has no numbers for, under the names that protocol buffers give them.
NOT_FINITE = MappingProxyType({"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf})


def digest(facts: Any) -> str:
    """12 hexadecimal digits that name something by everything that it depends on (JSON)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader never sees half of it, whoever else writes it as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as stream:
        stream.write(content)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text as UTF-8."""
    write_bytes(path, text.encode())


def strict_json(content: Any, indent: int | None = None) -> str:
    """JSON that any reader takes: a number that is not finite is its name in NOT_FINITE."""

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: named(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [named(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return next(name for name, number in NOT_FINITE.items() if repr(number) == repr(value))
        return value

    return json.dumps(named(content), indent=indent, allow_nan=False)


def number(value: Any) -> Any:
    """What was a number before `strict_json`, and an integer beyond all floats as infinity.

    Everything else is as it is.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        return math.inf if value > 0 else -math.inf
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def write_json(path: Path, content: Any) -> None:
    """`write_text` of `content` as JSON that any reader takes."""
    write_text(path, strict_json(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: for anything else, naming the file.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8 alike
        refuse_other(path, "JSON", "text")
        raise ValueError(f"{path} is truncated or no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with fields.")
    return content


def check_new(folder: Path, option: str) -> None:
    """Refuses a folder that holds something, and a path that is no folder.

    Raises:
        ValueError: naming the option that chose it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty. Choose another {option}.")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which becomes it at the end; an interruption leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
