"""Tiny files in the true formats of the published data sets, of random pixels."""

import gzip
import hashlib
import inspect
import io
import pathlib
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from experiments.data import celeb_a_hq, cifar10, emoji, fashion_mnist
from experiments.data.dataset import Dataset
from experiments.data.datasets import DATASETS
from tests.experiments import emoji_font
from tests.experiments.files import pickles

CIFAR_RECORDS = 6  # per file, instead of 10,000


def idx_files(folder: pathlib.Path, gzipped: bool = True) -> dict[str, np.ndarray]:
    """Writes the four IDX files, 30 train and 12 test items; returns the arrays by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 12)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = images
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


def idx_bytes(array: np.ndarray) -> bytes:
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.tobytes()


def idx_sha256(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays.items()}


def cifar_batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """File name without suffix -> (planes uint8[N, 3, 32, 32], labels uint8[N])."""
    rng = np.random.default_rng(1)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (
            rng.integers(0, 256, (CIFAR_RECORDS, 3, 32, 32), dtype=np.uint8),
            rng.integers(0, 10, CIFAR_RECORDS, dtype=np.uint8),
        )
        for name in names
    }


def write_tarball(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def cifar_binary(path: pathlib.Path) -> pathlib.Path:
    """Like cifar-10-binary.tar.gz with CIFAR_RECORDS records a file."""
    return write_tarball(
        path,
        {
            f"cifar-10-batches-bin/{name}.bin": np.concatenate(
                [labels[:, None], planes.reshape(CIFAR_RECORDS, -1)], axis=1
            ).tobytes()
            for name, (planes, labels) in cifar_batches().items()
        },
    )


def cifar_python(path: pathlib.Path, **batches: bytes) -> pathlib.Path:
    """Like cifar-10-python.tar.gz with CIFAR_RECORDS records a file; `batches` replace its own."""
    contents = {
        name: pickles.dumps(
            {
                b"batch_label": name.encode(),
                b"labels": labels.tolist(),
                b"data": planes.reshape(CIFAR_RECORDS, -1),
                b"filenames": [f"{name}_{i}.png".encode() for i in range(CIFAR_RECORDS)],
            }
        )
        for name, (planes, labels) in cifar_batches().items()
    }
    return write_tarball(
        path, {f"cifar-10-batches-py/{name}": c for name, c in (contents | batches).items()}
    )


def picture(path: pathlib.Path, width: int, height: int, seed: int) -> np.ndarray:
    """Writes a picture of random pixels; returns uint8[height, width, 3] (exact for PNG)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def prepare_all(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """Prepares a tiny stand-in of every data set; name -> keyword arguments of its factory.

    What is not prepared here must be what prepares itself, as the digits do.
    """
    data_dir = str(root / "prepared")
    arrays = idx_files(root / "idx")
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "SHA256", idx_sha256(arrays))
    fashion_mnist.prepare(str(root / "idx"), data_dir)
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", CIFAR_RECORDS)
    cifar10.prepare(str(cifar_binary(root / "binary.tar.gz")), data_dir)
    for i in range(10):
        picture(root / "faces" / f"{i:05d}.png", 256, 256, seed=i)
    celeb_a_hq.prepare(str(root / "faces"), data_dir)
    emoji.prepare(str(emoji_font.small(root / "emoji.ttf")), data_dir)
    for i in range(40):
        picture(root / "pictures" / f"{i % 3}" / f"{i}.jpg", 20 + i, 24, seed=i)
    pictures = {"path": str(root / "pictures"), "image_size": 16, "test_fraction": 0.3}
    return {
        name: pictures if of_a_folder(make) else {"data_dir": data_dir}
        for name, make in DATASETS.items()
    }


def of_a_folder(make: Callable[..., Dataset]) -> bool:
    """Whether a data set is any pictures in a folder, and nothing to be prepared."""
    return "path" in inspect.signature(make).parameters
