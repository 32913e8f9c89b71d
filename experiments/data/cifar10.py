"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, from either published tarball."""

import io
import math
import os
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

from experiments import console
from experiments.data import prepared
from experiments.data.dataset import Dataset, open_named_split
from experiments.files.contents import refuse_other
from experiments.files.pickles import Unpickler, UnsafeFile

IMAGE_SHAPE = (32, 32, 3)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
NUM_CLASSES = len(CLASSES)
LABELS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
RECORDS_PER_FILE = 10_000
PLANES_BYTES = 3 * 32 * 32  # of the red, green and blue planes
RECORD_BYTES = 1 + PLANES_BYTES  # the label before them
PYTHON_TARBALL = "cifar-10-python.tar.gz"
BINARY_TARBALL = "cifar-10-binary.tar.gz"
_BATCHES = MappingProxyType(
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
)
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8[N, 32, 32, 3], labels int64[N]


class Cifar10(cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """The stock data set with its tarball read by Python instead of TensorFlow.

    `source`, set before preparing, is the path of a tarball; None downloads the binary one.
    """

    PYTHON_TARBALL_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    BINARY_TARBALL_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    source: str | None = None

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        path = self.source
        if path is None:
            urls = {BINARY_TARBALL: self._cifar_info.url}
            path = prepared.download(dl_manager, urls)[BINARY_TARBALL]
        if os.path.basename(path) == PYTHON_TARBALL:
            splits = read_python_tarball(path, self.PYTHON_TARBALL_SHA256)
        else:
            splits = read_binary_tarball(path, self.BINARY_TARBALL_SHA256)
        self.info.features["label"].names = LABELS
        return {split: self._generate_examples(split, *splits[split]) for split in splits}

    def _generate_examples(
        self, split: str, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": prepared.encode_png(image),
                    "label": int(label),
                },
            )


def planes_to_images(planes: np.ndarray) -> np.ndarray:
    """uint8[N, 3072] of red, green, blue planes -> uint8[N, 32, 32, 3]."""
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def read_binary_tarball(path: str, sha256: str) -> dict[str, Arrays]:
    """Both splits of a tarball in the format of cifar-10-binary.tar.gz.

    Warns where it is in order and its digest is not `sha256`, the published file's.

    Raises:
        ValueError: it is truncated, lacks a file, or a file has another size or label.
    """
    names = {f"cifar-10-batches-bin/{b}.bin": b for batches in _BATCHES.values() for b in batches}
    contents = _read_members(path, list(names))
    parsed = {}
    for name, batch in names.items():
        if len(contents[name]) != RECORDS_PER_FILE * RECORD_BYTES:
            raise ValueError(
                f"{name} in {path} has {len(contents[name]):,} bytes, the format has "
                f"{RECORDS_PER_FILE:,} records of {RECORD_BYTES:,} bytes = "
                f"{RECORDS_PER_FILE * RECORD_BYTES:,}."
            )
        records = np.frombuffer(contents[name], np.uint8).reshape(-1, RECORD_BYTES)
        labels = records[:, 0].astype(np.int64)
        if labels.max() >= NUM_CLASSES:
            raise ValueError(
                f"{name} in {path} has label {labels.max()}, labels are 0..{NUM_CLASSES - 1}."
            )
        parsed[batch] = (planes_to_images(records[:, 1:]), labels)
    if (came := prepared.sha256_of(path)) != sha256:
        console.log(
            f"WARNING   {path} has SHA-256 {came}, the published file has {sha256}: its pictures "
            "are taken as they are, and may not be those of CIFAR-10."
        )
    return _join(parsed)


def read_python_tarball(path: str, sha256: str) -> dict[str, Arrays]:
    """Both splits of cifar-10-python.tar.gz, read only if the file's digest is `sha256`.

    Its pickles were written by Python 2; nothing in them is run.

    Raises:
        ValueError: the file is another one, or holds something else than batches of CIFAR-10.
    """
    if (came := prepared.sha256_of(path)) != sha256:
        refuse_other(Path(path), "gzipped tar file", "gzip")
        raise ValueError(
            f"{path} has SHA-256 {came}, the published file has {sha256}. It holds pickles, which "
            f"are opened only if it is exactly that file: fetch it again, or use {BINARY_TARBALL}."
        )
    names = {f"cifar-10-batches-py/{b}": b for batches in _BATCHES.values() for b in batches}
    contents = _read_members(path, list(names))
    parsed = {}
    for name, batch in names.items():
        try:
            parsed[batch] = _parse_batch(contents[name])
        except UnsafeFile as error:
            raise UnsafeFile(f"{name} in {path} was not read: {error}") from None
        except Exception as error:  # whatever a damaged pickle can raise
            raise ValueError(
                f"{name} in {path} was not read: it is truncated, damaged or no pickle "
                f"({type(error).__name__}: {error}); use {BINARY_TARBALL} instead."
            ) from error
    return _join(parsed)


class _Array:
    """What a pickle says of a NumPy array: (version, shape, dtype, columns first, bytes)."""

    state: Any = None


class _BatchUnpickler(Unpickler):
    """Knows arrays and dtypes, neither of which is made: the file's words for them are noted."""

    known = MappingProxyType(
        {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): lambda code, *_: code,
        }
    )
    content = "a batch of CIFAR-10"
    remedy = f"use {BINARY_TARBALL} instead."

    def set_state(self, value: Any, state: Any) -> None:
        """Keeps an array's; a dtype's says the byte order, which a byte has not."""
        if isinstance(value, _Array):
            value.state = state


def _parse_batch(content: bytes) -> Arrays:
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    match batch:
        case {
            b"data": _Array(state=(_, tuple(found), b"u1", bool(columns_first), bytes(pixels))),
            b"labels": list(labels),
        }:
            shape = (RECORDS_PER_FILE, PLANES_BYTES)
        case _:
            raise UnsafeFile("it holds no array of bytes `data` with a list `labels`.")
    if found != shape or len(pixels) != math.prod(shape):
        raise UnsafeFile(
            f"its array has the shape {found} and {len(pixels):,} bytes, the format's has {shape} "
            f"and {math.prod(shape):,}."
        )
    if len(labels) != RECORDS_PER_FILE or any(label not in range(NUM_CLASSES) for label in labels):
        raise UnsafeFile(
            f"its {len(labels):,} labels, {min(labels, default=None)}..{max(labels, default=None)},"
            f" must be {RECORDS_PER_FILE:,} of 0..{NUM_CLASSES - 1}."
        )
    planes = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if columns_first else "C")
    return planes_to_images(planes), np.array(labels, np.int64)


def _read_members(path: str, names: list[str]) -> dict[str, bytes]:
    """Contents of the named members, read into memory; nothing is extracted to disk."""
    contents = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                if member.name in names and (file := tar.extractfile(member)) is not None:
                    contents[member.name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        refuse_other(Path(path), "gzipped tar file", "gzip", "tar", "packed")
        raise ValueError(
            f"{path} is truncated or no gzipped tar file ({error}); fetch it again."
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not {BINARY_TARBALL} or whole.")
    return contents


def _join(parsed: dict[str, Arrays]) -> dict[str, Arrays]:
    return {
        split: (
            np.concatenate([parsed[batch][0] for batch in batches]),
            np.concatenate([parsed[batch][1] for batch in batches]),
        )
        for split, batches in _BATCHES.items()
    }


def _locate(source: str) -> str:
    """The tarball: `source` itself, or the one in the folder `source`; binary first."""
    if os.path.isdir(source):
        for name in (BINARY_TARBALL, PYTHON_TARBALL):
            if os.path.exists(os.path.join(source, name)):
                return os.path.join(source, name)
        raise FileNotFoundError(f"Neither {BINARY_TARBALL} nor {PYTHON_TARBALL} is in {source}.")
    if not os.path.exists(source):
        raise FileNotFoundError(f"There is no file {source}; {BINARY_TARBALL} is needed.")
    return source


def prepare(source: str | None, data_dir: str | None) -> str:
    """Prepares CIFAR-10 from a tarball and returns the prepared folder.

    Args:
        source: a tarball or its folder; None downloads. One of the name cifar-10-python.tar.gz
            is read as that file, any other as cifar-10-binary.tar.gz.
        data_dir: where to prepare; None is the usual place.
    Raises:
        FileNotFoundError: there is no tarball.
        ValueError: it is damaged, of another format, or the python one is not the published file.
    """
    builder = Cifar10(data_dir=prepared.resolve_data_dir(data_dir))
    builder.source = _locate(os.path.expanduser(source)) if source else None
    origin = builder.source or builder._cifar_info.url
    return prepared.write(builder, "cifar10", data_dir, origin, bool(source))


def open_split(split: str, data_dir: str | None) -> prepared.Prepared:
    """Opens "train" (50,000 images) or "test" (10,000)."""
    how_to_get = (
        f"Prepare it from {BINARY_TARBALL} (--from left out downloads it): "
        + prepared.prepare_command("cifar10", data_dir, BINARY_TARBALL)
    )
    return prepared.open_prepared("cifar10", split, IMAGE_SHAPE, data_dir, how_to_get)


def cifar10(data_dir: str | None = None) -> Dataset:
    """CIFAR-10, 50,000 train and 10,000 test images of 32x32 pixels.

    Args:
        data_dir: as in `digits`, or a gs:// address.
    """
    return Dataset(
        name="cifar10",
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        open=partial(open_named_split, open_split, {"data_dir": data_dir}),
        prepare=partial(prepare, data_dir=data_dir),
        prepared_from=f"{BINARY_TARBALL}, {PYTHON_TARBALL} or a folder that holds one; left out, "
        "a download",
    )
