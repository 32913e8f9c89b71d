"""Own pictures: held-out split, decoding to a square."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from experiments.data.dataset import SPLITS, Dataset, FileFacts, open_named_split
from experiments.data.pictures import Pictures, open_pictures
from experiments.lookup import choose

Decode = Callable[[str | BinaryIO, str], np.ndarray]  # file, name for messages -> uint8[S, S, C]

MOST_FILES = 100_000  # that are asked for their size
BACKGROUNDS = MappingProxyType({"white": 255, "black": 0})


def is_test(path: str, test_fraction: float) -> bool:
    """Whether a picture is held out; a hash of its relative path decides, so others move none."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:8], "big") < test_fraction * 2**64


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits or more, or of floating point, as grey of 8 bits.

    Sixteen bits are divided by 257; of floating point 0 is black and 1 white.

    Raises:
        ValueError: for numbers outside these ranges.
    """
    values = np.asarray(image, np.float64)
    scale = 255.0 if image.mode == "F" else 1.0 / 257.0
    scaled = np.rint(values * scale)
    if scaled.size and not (np.isfinite(scaled).all() and 0 <= scaled.min() <= scaled.max() <= 255):
        raise ValueError(f"mode {image.mode} holds {values.min():g} to {values.max():g}")
    return Image.fromarray(scaled.astype(np.uint8))


def decode(
    file: str | BinaryIO,
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    background: str = "white",
) -> np.ndarray:
    """uint8[image_size, image_size, channels]: shorter side resized (Lanczos), cropped centrally.

    Orientation tags are honoured, what is transparent lies on `background`, of an animation the
    first picture is taken, and 16 bits become 8.

    Raises:
        ValueError: the file cannot be decoded, saying its `name`.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode[0] in "IF":
                image = _in_8_bits(image)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, (BACKGROUNDS[background],) * 3 + (255,))
                image = Image.alpha_composite(ground, image)
            image = image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} cannot be used ({error}): put the file back as it was, or replace or remove "
            "it. A training that began with another file or none then goes on with "
            "--continue_with_new_data."
        ) from error
    scale = image_size / min(image.size)
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    square = np.asarray(image.crop((left, top, left + image_size, top + image_size)))
    return square.reshape(image_size, image_size, channels)


class ImageFolder:
    """Pictures decoded when read; [i] is {"image": uint8[S, S, C], "label": int32[]}."""

    def __init__(
        self, path: str, pictures: Pictures, indices: list[int], decode: Decode, labelled: bool
    ):
        self._path, self._pictures, self._indices = path, pictures, indices
        self._decode, self._labelled = decode, labelled

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = self._indices[index]
        name = f"{self._path}/{self._pictures.names[index]}"
        image = self._decode(self._pictures.open(index), name)
        label = self._pictures.label(index) if self._labelled else 0
        return {"image": image, "label": np.asarray(label, np.int32)}

    def files(self) -> list[FileFacts]:
        """Those of the pictures; of more than MOST_FILES every so many are looked at."""
        names = [FileFacts("names", [self._pictures.names[i] for i in self._indices], 0)]
        every = -(-len(self._indices) // MOST_FILES)
        return names + [self._pictures.facts(index) for index in self._indices[::every]]


def open_split(
    split: str, path: str, test_fraction: float, decode: Decode, num_classes: int
) -> ImageFolder:
    """Opens "train" or "test" of the pictures at a path.

    A data set of the hub that has a split "test" or "validation" holds out that one; else a share
    of the pictures is held out.

    Raises:
        FileNotFoundError: nothing is named, nothing is there, or no picture is in it.
        ValueError: every picture fell into the other split, or there are other classes.
        ImportError: without what a data set of the hub needs.
    """
    there = open_pictures(path)
    if "train" not in there:
        raise ValueError(f"{path} has no split 'train'; it has {', '.join(there)}.")
    own = next((there[name] for name in ("test", "validation") if name in there), None)
    pictures = own if own is not None and split == "test" else there["train"]
    classes = list(pictures.classes) if num_classes else []
    if len(classes) != num_classes:
        several = f"{len(classes)}, or to 0 for no labels"
        possible = several if len(classes) > 1 else "0, no labels, or make a folder for each class"
        raise ValueError(
            f"config.data.num_classes = {num_classes}, but the pictures in {path} have "
            f"{len(classes)} classes: {', '.join(map(repr, classes[:20]))}. Set it to {possible}."
        )
    every = pictures.names
    chosen = [
        index
        for index, name in enumerate(every)
        if own is not None or is_test(name, test_fraction) == (split == "test")
    ]
    if not chosen:
        raise ValueError(
            f"None of the {len(every)} pictures in {path} is in split {split!r} with "
            f"test_fraction={test_fraction}; change test_fraction (config.data.test_fraction), add "
            "pictures, or use the other split (config.evaluate.split)."
        )
    return ImageFolder(path, pictures, chosen, decode, bool(num_classes))


def image_folder(
    path: str,
    image_size: int,
    test_fraction: float = 0.05,
    channels: int = 3,
    background: str = "white",
    num_classes: int = 0,
) -> Dataset:
    """The pictures in a local folder and below, in an archive or a data set of the hub, as squares.

    The shorter side is resized to image_size and the longer one cropped centrally. A hash of its
    relative path decides whether a picture is held out, so adding pictures moves no other.

    Args:
        path: the folder, e.g. an LSUN category exported to files; a zip archive; or hf: and the
            name of a data set of the Hugging Face hub, or a folder that its save_to_disk wrote.
        image_size: side in pixels.
        test_fraction: expected part held out, in [0, 1); 0 trains on all.
        channels: 3, or 1 for grey.
        background: what transparent pictures lie on, a key of BACKGROUNDS.
        num_classes: of the folders directly in `path`, or of its column of labels; 0: no labels.

    Raises:
        ValueError: for other channels or another background.
    """
    if channels not in (1, 3):
        raise ValueError(f"config.data.channels = {channels} must be 3, or 1 for grey.")
    choose(BACKGROUNDS, background, "data.background")
    how = partial(decode, image_size=image_size, channels=channels, background=background)
    kwargs: dict[str, Any] = {"path": path, "test_fraction": test_fraction, "decode": how}
    kwargs["num_classes"] = num_classes
    return Dataset(
        name="image_folder",
        image_shape=(image_size, image_size, channels),
        num_classes=num_classes or None,
        open=partial(open_named_split, open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
    )
