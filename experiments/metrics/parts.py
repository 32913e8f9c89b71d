"""Results of a long computation, kept part by part so that an interruption loses one part."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import devices
from experiments.files.tensors import read_npz, write_npz


class Parts:
    """Named parts of one computation: npz files of a folder that every process can read.

    All processes see the parts that existed when the object was made, so that they take the same
    decisions; the main process writes.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self._names = list(names)
        found = np.array([self._path(name).is_file() for name in self._names], np.int32)
        found = np.asarray(devices.from_main(found))
        self._found = {name for name, there in zip(self._names, found, strict=True) if there}
        if devices.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def read(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a part that is there.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            return read_npz(self._path(name))
        except ValueError as error:
            raise ValueError(
                f"{self._path(name)}, a part of an interrupted evaluation, is damaged; delete it, "
                f"and it is computed again. ({error})"
            ) from error

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Saves a part; a reader never sees half of it."""
        if devices.is_main_process():
            write_npz(self._path(name), arrays)


def remove(folder: Path) -> None:
    """Deletes the parts of a computation whose result is kept elsewhere."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"parts {folder.name}")
    if devices.is_main_process():
        shutil.rmtree(folder, ignore_errors=True)
