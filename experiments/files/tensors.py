"""Arrays by name in npz and safetensors files, and the folder where this program keeps them."""

import hashlib
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import safetensors.numpy

from experiments.files.atomic import write_bytes
from experiments.files.contents import refuse_other
from experiments.files.pytorch import read_torch

CACHE_VARIABLE = "DDPM_CACHE"
# An archive that unpacks to more than both, times its own size and bytes, was made to do harm.
BOMB_RATIO, BOMB_BYTES = 100, 2**28


def cache_folder() -> Path:
    """$DDPM_CACHE or ~/.cache/ddpm-jax; nothing in it is needed, all of it is made again."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ddpm-jax").expanduser()


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file that other processes see whole or not at all."""
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_bytes(path, safetensors.numpy.save(arrays, metadata))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Writes an npz file that other processes see whole or not at all."""
    stream = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(stream, allow_pickle=False, **arrays)
    write_bytes(path, stream.getvalue())


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing in it is run.

    Args:
        names: of those that are wanted, where they are there; None is all.

    Raises:
        ValueError: if it is damaged or no npz of plain arrays, or unpacks to what no such file
            does.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if len(set(archive.files)) != len(archive.files):
                raise ValueError("it names one array twice")
            found = [name for name in archive.files if names is None or name in names]
            sizes = {each.filename: each.file_size for each in archive.zip.infolist()}
            unpacked = sum(sizes.get(f"{name}.npy", sizes.get(name, 0)) for name in found)
            packed = path.stat().st_size
            if unpacked > max(BOMB_BYTES, BOMB_RATIO * packed):
                raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}, as no numbers do")
            return {name: archive[name] for name in found}
    except OSError:
        raise
    except Exception as error:  # whatever zip, zlib and NumPy's headers can raise
        refuse_other(path, "npz of plain arrays", "zip")
        raise ValueError(f"{path} is damaged or no npz of plain arrays: {error}.") from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        ValueError: if it is damaged or no such file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except OSError:
        raise
    except Exception as error:  # of the format, or a dtype that NumPy has not
        refuse_other(path, "safetensors file", "safetensors")
        raise ValueError(f"{path} is truncated, damaged or no safetensors file: {error}") from error


READERS = MappingProxyType(
    {
        ".safetensors": read_safetensors,
        ".npz": read_npz,
        ".bin": read_torch,
        ".pt": read_torch,
        ".pth": read_torch,
        ".ckpt": read_torch,
    }
)
