"""JSON files, for programs that watch each other's folders."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes `content` so that a reader never sees half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write it as well
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: for anything else, naming the file.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8 alike
        raise ValueError(f"{path} is truncated or no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with fields.")
    return content
