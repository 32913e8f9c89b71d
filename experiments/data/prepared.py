"""Prepared folders of tensorflow-datasets in array_record: finding, writing and reading them."""

import hashlib
import io
import json
import logging
import os
import re
import shlex
from collections.abc import Sequence

import numpy as np
import requests
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from experiments import console
from experiments.data.dataset import FileFacts

FILE_FORMAT = "array_record"
CONNECT_SECONDS = 20
SOURCE = "source.json"  # in a prepared folder: what it was prepared from
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def resolve_data_dir(data_dir: str | None) -> str:
    """`data_dir`, or $TFDS_DATA_DIR, or ~/tensorflow_datasets; gs:// addresses pass unchanged."""
    return os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )


def prepare_command(dataset: str, data_dir: str | None = None, source: str | None = None) -> str:
    """The shell command that prepares `dataset`, as error messages give it."""
    words = ["python", "-m", "experiments.prepare", f"--dataset={dataset}"]
    if source:
        words.append(f"--from={source}")
    if data_dir:
        words.append(f"--data_dir={data_dir}")
    return shlex.join(words)


def find(dataset: str, data_dir: str | None) -> epath.Path | None:
    """The folder of the newest version of `dataset` ("name" or "name/config"), or None.

    Folders that a killed run left unfinished carry another name, so they are never found.
    """
    root = epath.Path(resolve_data_dir(data_dir)) / dataset
    if not root.exists():
        return None
    versions = {
        tuple(int(number) for number in match.groups()): folder
        for folder in root.iterdir()
        if (match := _VERSION.fullmatch(folder.name)) and (folder / "dataset_info.json").exists()
    }
    return versions[max(versions)] if versions else None


def formats(folder: epath.Path) -> list[str]:
    """The record formats that a prepared folder holds, e.g. ["array_record"]."""
    info = tfds.builder_from_directory(folder).info
    return sorted(file_format.value for file_format in info.available_file_formats())


def sha256_of(path: str) -> str:
    """The SHA-256 hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_of(folder: str | os.PathLike) -> str | None:
    """What a prepared folder, or one of the folders in it, was prepared from, where it says so."""
    for pattern in (SOURCE, f"*/*/{SOURCE}"):
        for path in epath.Path(folder).glob(pattern):
            return json.loads(path.read_text())["from"]
    return None


def write(
    builder: tfds.core.GeneratorBasedBuilder,
    dataset: str,
    data_dir: str | None,
    source: str,
    named: bool = False,
) -> str:
    """Prepares `builder`'s data set unless it is there already, and returns its folder.

    The records are written to a temporary folder that takes its final name once it is complete.
    Of two processes that prepare the same folder at the same time one wins and both return it.

    Args:
        builder: reads `source`.
        dataset: "name" or "name/config".
        data_dir: as in `resolve_data_dir`.
        source: a file, a folder, an address or the name of a package; kept in the folder.
        named: by the user, so that a folder of something else is no answer.

    Raises:
        ValueError: the folder is there in another format than array_record, or from elsewhere.
    """
    if os.path.exists(source):
        source = os.path.realpath(source)
    folder = find(dataset, data_dir)
    if folder is not None:
        if FILE_FORMAT not in formats(folder):
            raise ValueError(
                f"{folder} already holds {dataset} as {', '.join(formats(folder))}, which cannot "
                f"be read without TensorFlow. Move that folder away, or prepare {dataset} in "
                f"another folder: {prepare_command(dataset, 'ANOTHER_FOLDER')}"
            )
        before = source_of(folder)
        if named and before != source:
            raise ValueError(
                f"{folder} was prepared before from {before or 'something that it does not tell'}, "
                f"and {source} was not read. Leave out --from to keep what is there, move that "
                "folder away, or name another place with --data_dir."
            )
        return os.fspath(folder)
    console.log(f"preparing {dataset} from {source}")
    tfds.disable_progress_bar()
    for name in ("_log_download_bytes", "_log_download_done"):  # of sizes that are unknown
        setattr(builder, name, lambda: None)
    try:
        with console.told_when_slow(f"{dataset} to be prepared", console.SOON):
            builder.download_and_prepare(file_format=FILE_FORMAT)
        (epath.Path(builder.data_path) / SOURCE).write_text(json.dumps({"from": source}))
    except OSError:
        if find(dataset, data_dir) is None:  # else another process was faster
            raise
    return os.fspath(builder.data_path)


class Prepared:
    """A split of a prepared folder; [i] is {"image": uint8[H, W, C], "label": int32[]}.

    Without labels in the folder every label is 0. Records are decoded here: many at once this is
    some five times as fast as through the features of tensorflow-datasets.
    """

    def __init__(self, folder: epath.Path, split: str):
        builder = tfds.builder_from_directory(folder)
        self._records = builder.as_data_source(
            split,
            file_format=FILE_FORMAT,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        self._folder = folder
        self.image_shape = tuple(builder.info.features["image"].shape)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, label = self._decode(self._records[index])
        return {"image": image, "label": label}

    def gather(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several at once: {"image": uint8[N, H, W, C], "label": int32[N]}."""
        images, labels = zip(*map(self._decode, self._records.__getitems__(indices)), strict=True)
        return {"image": np.stack(images), "label": np.stack(labels)}

    def text(self, index: int) -> str:
        """The words that belong to an image.

        Raises:
            ValueError: the data set has none.
        """
        features = tf_example_pb2.Example.FromString(self._records[index]).features.feature
        if "text" not in features:
            raise ValueError("The images of this data set have labels at most: there is no text.")
        return features["text"].bytes_list.value[0].decode()

    def files(self) -> list[FileFacts]:
        """Those of the prepared folder."""
        found = sorted(self._folder.iterdir(), key=lambda path: path.name)
        stats = [(path.name, path.stat()) for path in found]
        return [FileFacts(name, stat.length, int(stat.mtime * 1e9)) for name, stat in stats]

    def _decode(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        features = tf_example_pb2.Example.FromString(record).features.feature
        mode = "L" if self.image_shape[2] == 1 else "RGB"
        with Image.open(io.BytesIO(features["image"].bytes_list.value[0])) as picture:
            image = np.asarray(picture.convert(mode), np.uint8).reshape(self.image_shape)
        label = features["label"].int64_list.value[0] if "label" in features else 0
        return image, np.asarray(label, np.int32)


def open_prepared(
    dataset: str,
    split: str,
    image_shape: tuple[int, int, int],
    data_dir: str | None,
    how_to_get: str,
) -> Prepared:
    """Opens a split (TFDS syntax, e.g. "train[:90%]") of a prepared data set.

    Args:
        dataset: "name" or "name/config".
        image_shape: H, W, C that the folder must hold.
        data_dir: a local folder or gs:// address; None is the usual place (`resolve_data_dir`).
        how_to_get: a sentence for the error message, with the command that prepares it.
    Raises:
        FileNotFoundError: there is no such prepared folder.
        ValueError: it is in a format other than array_record, or its images have another shape.
    """
    folder = find(dataset, data_dir)
    if folder is None:
        raise FileNotFoundError(
            f"The data set {dataset!r} is not prepared: looked for "
            f"{resolve_data_dir(data_dir)}/{dataset}/<version>/dataset_info.json. {how_to_get}"
        )
    if FILE_FORMAT not in formats(folder):
        raise ValueError(
            f"{folder} holds {dataset} as {', '.join(formats(folder))}, which cannot be read "
            f"without TensorFlow; {FILE_FORMAT} is needed. Prepare it again in another folder: "
            f"{prepare_command(dataset, 'ANOTHER_FOLDER')}"
        )
    source = Prepared(folder, split)
    if source.image_shape != image_shape:
        raise ValueError(
            f"{folder} holds images of shape {source.image_shape}, {image_shape} is needed. "
            f"{how_to_get}"
        )
    return source


def download(dl_manager: tfds.download.DownloadManager, urls: dict[str, str]) -> dict[str, str]:
    """Downloads each address and returns where the files lie, under the same keys.

    Raises:
        OSError: an address cannot be had; at once where there is no network.
    """
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of every try again
    try:
        for url in urls.values():
            requests.head(url, timeout=CONNECT_SECONDS)  # tensorflow-datasets tries for minutes
        paths = dl_manager.download(urls)
    except Exception as error:  # of requests, urllib3 or tensorflow-datasets
        raise OSError(
            f"Downloading {', '.join(urls.values())} failed ({error}). Fetch the files in another "
            "way and name them with --from."
        ) from error
    return {key: os.fspath(path) for key, path in paths.items()}


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of uint8[H, W, 1 or 3]; TFDS itself would encode an array through TensorFlow."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"uint8[H, W, 1 or 3] is needed, got {image.dtype}{list(image.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
        buffer, format="png", compress_level=1
    )
    return buffer.getvalue()
