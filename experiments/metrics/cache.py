"""What this program keeps between runs because it need not make it twice."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

CACHE_VARIABLE = "DDPM_CACHE"


def cache_folder() -> Path:
    """$DDPM_CACHE or ~/.cache/ddpm-jax; nothing in it is needed, all of it is made again."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ddpm-jax").expanduser()


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file that other processes see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
        stream.write(safetensors.numpy.save(arrays, metadata))
    os.replace(stream.name, path)
