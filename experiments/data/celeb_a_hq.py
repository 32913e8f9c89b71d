"""CelebA-HQ at 256x256 pixels: 30,000 faces, from a folder of pictures."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.celeb_a_hq import celeb_a_hq_dataset_builder

from experiments import console
from experiments.data import prepared
from experiments.data.dataset import SPLITS, Dataset, open_named_split
from experiments.data.image_folder import remarks
from experiments.data.pictures import Folder
from experiments.data.reader import decode

IMAGE_SHAPE = (256, 256, 3)
DATASET = "celeb_a_hq/256"
PUBLISHED = 30_000  # pictures; no checksum of theirs is known


class CelebAHq(celeb_a_hq_dataset_builder.Builder, skip_registration=True):  # type: ignore[call-arg]
    """The stock data set, read from the folder `source_dir` instead of a tar file."""

    name = "celeb_a_hq"
    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    source_dir: str = ""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # the images may not be redistributed: nothing to download
        return {"train": self._generate_examples(Folder(self.source_dir).names)}

    def _generate_examples(self, paths: list[str]) -> Iterator[tuple[str, dict]]:
        for path in paths:
            image = _png_bytes(os.path.join(self.source_dir, path))
            yield path, {"image": image, "image/filename": path}


def _png_bytes(path: str) -> bytes:
    """The picture as a 256x256 RGB PNG; a file that is one already is kept byte for byte."""
    image = decode(path, path, image_size=IMAGE_SHAPE[0])
    with Image.open(path) as opened:
        is_png = opened.format == "PNG" and opened.mode == "RGB"
        if is_png and np.array_equal(np.asarray(opened), image):
            return Path(path).read_bytes()
    return prepared.encode_png(image)


def prepare(source: str | None, data_dir: str | None) -> str:
    """Prepares CelebA-HQ from a folder of pictures and returns the prepared folder.

    Args:
        source: the folder (searched recursively); pictures of other sizes are resized.
        data_dir: where to prepare; None is the usual place.
    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: no folder was given, or a picture is corrupt.
    """
    if not source:
        raise ValueError(
            "CelebA-HQ cannot be downloaded: name a folder of its pictures, "
            + prepared.prepare_command(DATASET, data_dir, "FOLDER_OF_IMAGES")
        )
    builder = CelebAHq(config="256", data_dir=prepared.resolve_data_dir(data_dir))
    builder.source_dir = os.path.abspath(os.path.expanduser(source))
    there = Folder(builder.source_dir)
    console.log_lines(remarks(there, source))
    found = len(there.names)
    if found != PUBLISHED:
        console.log(
            f"WARNING   {source} holds {found:,} pictures, the published data set {PUBLISHED:,}: "
            "what is there is taken, and its numbers are not those of CelebA-HQ."
        )
    return prepared.write(builder, DATASET, data_dir, builder.source_dir, named=True)


def open_split(split: str, data_dir: str | None, test_fraction: float) -> prepared.Prepared:
    """Opens "train" or "test": the data set has one split, whose last part is held out.

    The order is that of the prepared folder, which tensorflow-datasets derives from a hash of
    the file names; so the same files give the same split everywhere.

    Raises:
        ValueError: the wanted part is empty.
    """
    how_to_get = "Prepare it from a folder of its 256x256 pictures: " + prepared.prepare_command(
        DATASET, data_dir, "FOLDER_OF_IMAGES"
    )
    whole = prepared.open_prepared(DATASET, "train", IMAGE_SHAPE, data_dir, how_to_get)
    boundary = len(whole) - round(test_fraction * len(whole))
    start, stop = (0, boundary) if split == "train" else (boundary, len(whole))
    if start == stop:
        raise ValueError(
            f"{DATASET} with {len(whole)} images and test_fraction={test_fraction} has nothing in "
            f"split {split!r}; change test_fraction (config.data.test_fraction), or use the other "
            "split (config.evaluate.split)."
        )
    return prepared.open_prepared(
        DATASET, f"train[{start}:{stop}]", IMAGE_SHAPE, data_dir, how_to_get
    )


def celeb_a_hq_256(data_dir: str | None = None, test_fraction: float = 0.1) -> Dataset:
    """CelebA-HQ at 256x256 pixels; of its one split of 30,000 images the last part is held out.

    Args:
        data_dir: as in `digits`, or a gs:// address.
        test_fraction: part held out, in [0, 1); 0.1 gives 27,000 and 3,000 images, 0 trains on all.
    """
    kwargs = {"data_dir": data_dir, "test_fraction": test_fraction}
    return Dataset(
        name="celeb_a_hq/256",
        image_shape=IMAGE_SHAPE,
        num_classes=None,
        open=partial(open_named_split, open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
        prepare=partial(prepare, data_dir=data_dir),
        prepared_from="a folder of its pictures, which cannot be downloaded",
    )
