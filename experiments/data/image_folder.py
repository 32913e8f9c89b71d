"""Folders of pictures: listing, held-out split, decoding to a square."""

import hashlib
import os
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from experiments.data.dataset import SPLITS, Dataset, open_named_split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def list_images(folder: str) -> list[str]:
    """Sorted paths, relative to `folder` and with "/", of all pictures in it and below.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}; a folder of pictures is needed.")
    found = [
        os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    ]
    if not found:
        raise FileNotFoundError(f"No picture ({', '.join(EXTENSIONS)}) is in {folder} or below.")
    return sorted(found)


def is_test(path: str, test_fraction: float) -> bool:
    """Whether a picture is held out; a hash of its relative path decides, so others move none."""
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:8], "big") < test_fraction * 2**64


def decode(path: str, image_size: int) -> np.ndarray:
    """uint8[image_size, image_size, 3]: shorter side resized (Lanczos), then cropped centrally.

    Orientation tags are honoured and transparency is dropped.

    Raises:
        ValueError: the file cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode[0] in "IF":
                raise ValueError(f"mode {opened.mode} has more than 8 bits a channel")
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be used ({error}); replace or remove it.") from error
    scale = image_size / min(image.size)
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


class ImageFolder:
    """Pictures decoded when read; [i] is {"image": uint8[S, S, 3], "label": int32[] of 0}."""

    def __init__(self, folder: str, paths: list[str], image_size: int):
        self._folder = folder
        self._paths = paths
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = os.path.join(self._folder, self._paths[index])
        return {"image": decode(path, self._image_size), "label": np.asarray(0, np.int32)}


def open_split(split: str, path: str, image_size: int, test_fraction: float) -> ImageFolder:
    """Opens "train" or "test" of the pictures below a local folder.

    Raises:
        FileNotFoundError: no folder is named, there is none, or no picture in it.
        ValueError: every picture fell into the other split.
    """
    if not path:  # which would be the current folder
        raise FileNotFoundError("config.data.path = '' must name the folder of pictures.")
    folder = os.path.abspath(os.path.expanduser(path))
    every = list_images(folder)
    paths = [name for name in every if is_test(name, test_fraction) == (split == "test")]
    if not paths:
        raise ValueError(
            f"None of the {len(every)} pictures in {folder} is in split {split!r} with "
            f"test_fraction={test_fraction}; change test_fraction (config.data.test_fraction), add "
            "pictures, or use the other split (config.evaluate.split)."
        )
    return ImageFolder(folder, paths, image_size)


def image_folder(path: str, image_size: int, test_fraction: float = 0.05) -> Dataset:
    """The jpg, png and webp pictures in a local folder and below, as RGB squares.

    The shorter side is resized to image_size and the longer one cropped centrally. A hash of its
    relative path decides whether a picture is held out, so adding pictures moves no other.

    Args:
        path: the folder, e.g. an LSUN category exported to files.
        image_size: side in pixels.
        test_fraction: expected part held out, in [0, 1); 0 trains on all.
    """
    kwargs = {"path": path, "image_size": image_size, "test_fraction": test_fraction}
    return Dataset(
        name="image_folder",
        image_shape=(image_size, image_size, 3),
        num_classes=None,
        open=partial(open_named_split, open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
    )
