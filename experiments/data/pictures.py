"""Where own pictures lie: a folder, a zip archive, or a data set of the Hugging Face hub."""

import contextlib
import functools
import io
import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from experiments.data.dataset import FileFacts
from experiments.data.listing import list_archive, list_folder

HUB = "hf:"  # how the path of a data set of the hub begins
LARGEST = 2**28  # bytes of a picture in an archive, which may claim to unpack to anything
DATASETS_EXTRA = "pip install -e '.[datasets]'"


class Pictures(Protocol):
    """Picklable list of encoded pictures.

    names: of each, all different; a hash of it decides the split of a picture.
    classes: their names, in the order of their numbers.
    classes_by_alphabet: in the order that they had when a folder 10 came before a folder 2.
    left_out: what lies beside the pictures and is none of them, in words; "" for nothing.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def classes_by_alphabet(self) -> Sequence[str]: ...

    @property
    def left_out(self) -> str: ...

    def open(self, index: int) -> str | BinaryIO:
        """The path of the picture's file, or its bytes.

        Raises:
            ValueError: it cannot be read.
        """

    def label(self, index: int) -> int:
        """The number of its class; there are classes."""

    def facts(self, index: int) -> FileFacts:
        """Of its file, without reading it."""


def top_folder(name: str) -> str:
    """The first folder of a picture's relative path; "" for one that lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes: whole numbers in theirs, then the others in that of the alphabet."""

    def key(name: str) -> tuple[bool, int, str]:
        number = name.isascii() and name.isdecimal()
        return not number, int(name) if number else 0, name

    return sorted(names, key=key)


class Folder:
    """The pictures in a folder and below; the folders directly in it are the classes."""

    def __init__(self, path: str) -> None:
        found = list_folder(path)
        self._path, self.names, self.left_out = path, found.names, found.left_out()
        self._name_classes()

    def _name_classes(self) -> None:
        self.classes_by_alphabet = sorted({top_folder(name) for name in self.names})
        self.classes = in_order(self.classes_by_alphabet)
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    def open(self, index: int) -> str | BinaryIO:
        return os.path.join(self._path, self.names[index])

    def label(self, index: int) -> int:
        return self._numbers[top_folder(self.names[index])]

    def facts(self, index: int) -> FileFacts:
        name = self.names[index]
        found = os.stat(os.path.join(self._path, name))
        return FileFacts(name, found.st_size, found.st_mtime_ns)


class Zip(Folder):
    """The pictures in a zip archive, read from it and never unpacked to the disk.

    Folders that hold all of them are left out of their names; those below are the classes.
    """

    def __init__(self, path: str) -> None:
        """Raises:
        FileNotFoundError: no picture is in it.
        ValueError: it is no zip archive.
        """
        self._path = path
        found = list_archive(self._archive.namelist(), path)
        self._members, self.left_out = found.names, found.left_out()
        names = [name.lstrip("/") for name in self._members]
        root = posixpath.commonpath([posixpath.dirname(name) for name in names])
        self.names = [name.removeprefix(f"{root}/") for name in names]
        self._name_classes()

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"config.data.path = {self._path!r} is no whole zip archive ({error}). Name a "
                "folder of pictures or a zip archive."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: a process that reads opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_archive"}

    def open(self, index: int) -> str | BinaryIO:
        name = self._members[index]
        try:
            with self._archive.open(name) as file:
                content = file.read(LARGEST + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"{name} in {self._path} cannot be unpacked ({error}).") from error
        if len(content) > LARGEST:
            raise ValueError(f"{name} in {self._path} unpacks to more than {LARGEST:,} bytes.")
        return io.BytesIO(content)

    def facts(self, index: int) -> FileFacts:
        name = self._members[index]
        return FileFacts(name, self._archive.getinfo(name).CRC, 0)


class HubDataset:
    """The pictures of a split of a data set in the format of Hugging Face's `datasets`."""

    left_out = ""

    def __init__(self, rows: Any, split: str, path: str) -> None:
        """Args:
        rows: a datasets.Dataset.
        split: its name.
        path: for messages.

        Raises:
            ValueError: no column holds pictures.
        """
        import datasets

        features = rows.features
        columns = [n for n, kind in features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            found = ", ".join(f"{name}: {kind}" for name, kind in features.items())
            raise ValueError(f"{path} has no column of pictures; its columns are {found}.")
        self._column = columns[0]
        labels = [n for n, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        self.classes = list(features[labels[0]].names) if labels else []
        self.classes_by_alphabet = self.classes  # which say their numbers
        self._labels = rows[labels[0]][:] if labels else []
        rows = rows.select_columns([self._column])
        self._rows = rows.cast_column(self._column, datasets.Image(decode=False))
        self.names = [f"{split}/{index}" for index in range(len(rows))]

    def open(self, index: int) -> str | BinaryIO:
        content = self._rows[index][self._column]
        return io.BytesIO(content["bytes"]) if content["bytes"] else content["path"]

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def facts(self, index: int) -> FileFacts:
        return FileFacts(self.names[index], 0, 0)  # of what the hub keeps nothing is asked


def _download(name: str) -> Any:
    """A data set of the hub; without a network one that was downloaded before, at once."""
    import datasets
    import huggingface_hub

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        try:
            huggingface_hub.dataset_info(name, timeout=20)
        except Exception as error:  # of its HTTP client; load_dataset would try for half a minute
            datasets.config.HF_HUB_OFFLINE = True
            with contextlib.suppress(Exception):
                return datasets.load_dataset(name)
            raise error
        return datasets.load_dataset(name)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def open_hub(name: str) -> dict[str, HubDataset]:
    """The splits of a data set of the hub, or of a folder that `save_to_disk` wrote, by name.

    Raises:
        ImportError: without the extra `datasets`.
        FileNotFoundError: it cannot be had.
        ValueError: a split has no column of pictures.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"config.data.path = {HUB + name!r} needs Hugging Face's datasets: {DATASETS_EXTRA}"
        ) from error
    try:
        if os.path.isdir(folder := os.path.expanduser(name)):
            found = datasets.load_from_disk(folder)
        else:
            found = _download(name)
    except Exception as error:  # of the network, of pyarrow, of the data set's own files
        raise FileNotFoundError(
            f"config.data.path = {HUB + name!r} cannot be opened ({error}). Name a data set of "
            "the hub, as OWNER/NAME, or a folder that its save_to_disk wrote."
        ) from error
    splits = found if isinstance(found, dict) else {"train": found}
    return {split: HubDataset(rows, split, HUB + name) for split, rows in splits.items()}


def open_pictures(path: str) -> Mapping[str, Pictures]:
    """The pictures of config.data.path by split; a folder or an archive has "train" alone.

    Raises:
        FileNotFoundError: nothing is named, nothing is there, or no picture is in it.
        ValueError: an archive is none, or a data set has no column of pictures.
        ImportError: without what a data set of the hub needs.
    """
    if not path:  # which would be the current folder
        raise FileNotFoundError(
            "config.data.path = '' must name the pictures: a folder, a zip archive, or "
            f"{HUB}OWNER/NAME."
        )
    if path.startswith(HUB):
        return open_hub(path.removeprefix(HUB))
    place = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(place):
        return {"train": Zip(place)}
    return {"train": Folder(place)}
