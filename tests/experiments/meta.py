"""What a checkpoint says of itself, changed as another version would have written it."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.workdir.checkpoint import _of_meta


def edit(step: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the JSON of the checkpoint in the folder `step`, and its checksum with it."""
    path = next((step / "meta").glob("meta*"))
    meta = json.loads(path.read_text())
    del meta["checksum"]
    change(meta)
    path.write_text(json.dumps(meta | {"checksum": _of_meta(meta)}))
