"""Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, from IDX files."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import mnist

from experiments.data import prepared
from experiments.data.dataset import Dataset, open_named_split
from experiments.files.contents import refuse_other

IMAGE_SHAPE = (28, 28, 1)
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
NUM_CLASSES = len(CLASSES)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
HOW_TO_GET = (
    f"Install Debian's package {DEBIAN_PACKAGE} (its files are found by themselves), or name a "
    "folder of the four IDX files with --from, or have them downloaded; then run: "
)
_FILES = MappingProxyType({"train": "train", "test": "t10k"})  # split -> prefix of its files


class FashionMNIST(mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """The stock data set with its files read by Python instead of TensorFlow.

    `source_dir`, set before preparing, is the folder of IDX files; None downloads them.
    """

    SHA256 = MappingProxyType(  # of the uncompressed contents
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        }
    )
    source_dir: str | None = None

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        if self.source_dir is None:
            urls = {name: f"{self.URL}{name}.gz" for name in self.SHA256}
            paths = prepared.download(dl_manager, urls)
        else:
            paths = {name: _locate(self.source_dir, name) for name in self.SHA256}
        contents = {name: read_verified(paths[name], self.SHA256[name]) for name in self.SHA256}
        return {
            split: self._generate_examples(
                parse_idx(contents[f"{prefix}-images-idx3-ubyte"], (28, 28)),
                parse_idx(contents[f"{prefix}-labels-idx1-ubyte"], ()),
            )
            for split, prefix in _FILES.items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": prepared.encode_png(image[..., None]), "label": int(label)}


def _locate(folder: str, name: str) -> str:
    for candidate in (name, f"{name}.gz"):
        path = os.path.join(folder, candidate)
        if os.path.exists(path):
            return path
    raise FileNotFoundError(f"Neither {name} nor {name}.gz is in {folder}.")


def read_verified(path: str, sha256: str) -> bytes:
    """Contents of a file, gunzipped if need be, whose SHA-256 hex digest must be `sha256`.

    Raises:
        ValueError: the file is truncated, or its contents are others.
    """
    with open(path, "rb") as file:
        content = file.read()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from error
    came = hashlib.sha256(content).hexdigest()
    if came != sha256:
        refuse_other(Path(path), "file of Fashion-MNIST", "gzip")
        raise ValueError(
            f"{path} is not the published file: its uncompressed contents have SHA-256 {came}, "
            f"{sha256} is needed. Fetch it again."
        )
    return content


def parse_idx(content: bytes, item_shape: tuple[int, ...]) -> np.ndarray:
    """uint8[N, *item_shape] from the bytes of an IDX file.

    Raises:
        ValueError: the header or the length belongs to something else.
    """
    rank = 1 + len(item_shape)
    header = 4 * (1 + rank)
    words = np.frombuffer(content[:header], dtype=">u4").tolist() if len(content) >= header else []
    if not words or words[0] != 0x800 + rank or tuple(words[2:]) != item_shape:
        raise ValueError(f"not an IDX file of uint8[N, {item_shape}]: its header reads {words}")
    if len(content) != header + words[1] * int(np.prod(item_shape)):
        raise ValueError(f"an IDX file of {words[1]} items with {len(content)} bytes is truncated")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(words[1], *item_shape)


def prepare(source: str | None, data_dir: str | None) -> str:
    """Prepares Fashion-MNIST from a folder of IDX files and returns the prepared folder.

    Args:
        source: the folder; None takes the Debian package's where installed, else downloads.
        data_dir: where to prepare; None is the usual place.
    Raises:
        FileNotFoundError: `source` lacks a file.
        ValueError: a file is damaged or not the published one.
    """
    folder = source or (DEBIAN_FOLDER if os.path.isdir(DEBIAN_FOLDER) else None)
    builder = FashionMNIST(data_dir=prepared.resolve_data_dir(data_dir))
    origin = builder.URL
    if folder:
        origin = builder.source_dir = os.path.expanduser(folder)
        for name in builder.SHA256:
            _locate(origin, name)  # also where it is prepared already
    return prepared.write(builder, "fashion_mnist", data_dir, origin, bool(source))


class Padded:
    """A source whose images get `margin` zero pixels on every side."""

    def __init__(self, source: prepared.Prepared, margin: int):
        self._source = source
        self._margins = ((margin, margin), (margin, margin), (0, 0))  # of H, W, C

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._source[index]
        return {**record, "image": np.pad(record["image"], self._margins)}

    def gather(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several at once: {"image": uint8[N, H, W, C], "label": int32[N]}."""
        records = self._source.gather(indices)
        return {**records, "image": np.pad(records["image"], ((0, 0), *self._margins))}


def open_split(split: str, data_dir: str | None, pad_to: int) -> prepared.Prepared | Padded:
    """Opens "train" (60,000 images) or "test" (10,000), padded to `pad_to` x `pad_to` pixels."""
    how_to_get = HOW_TO_GET + prepared.prepare_command("fashion_mnist", data_dir)
    source = prepared.open_prepared("fashion_mnist", split, IMAGE_SHAPE, data_dir, how_to_get)
    margin = (pad_to - IMAGE_SHAPE[0]) // 2
    return Padded(source, margin) if margin else source


def fashion_mnist(data_dir: str | None = None, pad_to: int = 28) -> Dataset:
    """Fashion-MNIST, 60,000 train and 10,000 test images of 28x28 pixels.

    Args:
        data_dir: as in `digits`, or a gs:// address.
        pad_to: side in pixels; above 28, zeros are added evenly on all sides.
    Raises:
        ValueError: pad_to is odd.
    """
    if pad_to % 2:
        raise ValueError(f"config.data.pad_to = {pad_to} must be even: every side gets as much.")
    return Dataset(
        name="fashion_mnist",
        image_shape=(pad_to, pad_to, 1),
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        open=partial(open_named_split, open_split, {"data_dir": data_dir, "pad_to": pad_to}),
        prepare=partial(prepare, data_dir=data_dir),
        prepared_from="a folder of the four IDX files; left out, the files of Debian's package "
        f"{DEBIAN_PACKAGE} where it is installed, else a download",
    )
