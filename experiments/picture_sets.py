"""Sets of pictures by what names them: a folder, an archive, an npz file, samples, a data set."""

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data.dataset import Dataset, gather
from experiments.data.image_folder import remarks
from experiments.data.pictures import open_pictures
from experiments.data.reader import Decode, decode, fit
from experiments.files.tensors import read_npz
from experiments.lookup import suggestion
from experiments.prepare import PREPARED
from experiments.sample_files import ABOUT, WRITTEN


class Reading(NamedTuple):
    """How pictures are read: the options of `reader.decode`."""

    image_size: int | None = None
    channels: int = 3
    background: str = "white"
    value_range: tuple[float, ...] = ()


AS_THEY_ARE = Reading()


class Pictures(NamedTuple):
    """Images of one size, read when they are needed.

    read: (start, stop) -> uint8[N, H, W, C].
    remarks: lines for the user.
    """

    number: int
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    remarks: tuple[str, ...] = ()


def written_size(shape: tuple[int, ...]) -> str:
    """Of images H, W, C, for messages."""
    return f"{shape[1]} x {shape[0]} pixels"


def of_files(path: Path, reading: Reading) -> Pictures:
    """All pictures below a folder or in an archive, in the order of their paths.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: for those that cannot be read, and for several sizes when they are read.
    """
    found = open_pictures(str(path))["train"]
    names = [f"{path}/{name}" for name in found.names]
    one: Decode = partial(decode, **reading._asdict())
    shape = one(found.open(0), names[0]).shape

    def read(start: int, stop: int) -> np.ndarray:
        images = [one(found.open(i), names[i]) for i in range(start, min(stop, len(names)))]
        for name, image in zip(names[start:stop], images, strict=True):
            if image.shape != shape:
                raise ValueError(
                    f"{name} is {written_size(image.shape)}, and {names[0]} is "
                    f"{written_size(shape)}: pictures of one size are needed. --image_size=N makes "
                    "squares of them as training does."
                )
        return np.stack(images)

    how = {"background": reading.background, "value_range": reading.value_range}
    return Pictures(len(names), shape, read, tuple(remarks(found, str(path), **how)))


def _fitted(images: np.ndarray, reading: Reading) -> np.ndarray:
    """Images as `reading` says, of which size and channels matter to them."""
    size = images.shape[1:3] if reading.image_size is None else (reading.image_size,) * 2
    if images.shape[1:] == (*size, reading.channels):
        return images
    mode = "L" if reading.channels == 1 else "RGB"
    pictures = [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in images]
    return np.stack([fit(picture.convert(mode), reading.image_size) for picture in pictures])


def _in_memory(images: np.ndarray, reading: Reading) -> Pictures:
    shape = _fitted(images[:1], reading).shape[1:]
    return Pictures(len(images), shape, lambda start, stop: _fitted(images[start:stop], reading))


def npz(path: Path) -> np.ndarray:
    """The images of an npz file.

    Raises:
        ValueError: where it holds none.
    """
    arrays = read_npz(path)
    for name, array in sorted(arrays.items(), key=lambda item: item[0] != "arr_0"):
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3) and array.size:
            return array
        if name == "arr_0":
            raise ValueError(
                f"{path}: arr_0 is {array.dtype}{list(array.shape)}, and images are uint8[N, H, W, "
                "1 or 3]. (Samples that were written as PNG files are in the folder images/.)"
            )
    raise ValueError(f"{path} holds neither images uint8[N, H, W, 1 or 3] nor mu and sigma.")


def own_samples(path: Path, reading: Reading) -> Pictures:
    """The samples of a folder that --mode=sample wrote, without the grids beside them."""
    if (path / "images").is_dir():
        return of_files(path / "images", reading)
    files = [file for file in sorted(path.iterdir()) if WRITTEN.fullmatch(file.name)]
    if not files:
        raise ValueError(f"{path} holds no samples yet: --mode=sample has not finished there.")
    return _in_memory(np.concatenate([read_npz(file)["arr_0"] for file in files]), reading)


def dataset_of(name: str) -> Dataset:
    """A prepared data set; raises ValueError for another name."""
    if name not in PREPARED:
        raise ValueError(f"{name!r} is no prepared data set. {suggestion(name, PREPARED)}")
    return PREPARED[name]()


def pictures_of(name: str, reading: Reading = AS_THEY_ARE) -> Pictures:
    """The pictures that a word names.

    Raises:
        ValueError, FileNotFoundError: for what is not there, or no pictures.
    """
    if name.startswith("data:"):
        source = dataset_of(name.removeprefix("data:")).open("train")

        def read(start: int, stop: int) -> np.ndarray:
            return _fitted(gather(source, range(start, stop))["image"], reading)

        return Pictures(len(source), read(0, 1).shape[1:], read)
    path = Path(name).expanduser()
    if path.is_dir():
        return own_samples(path, reading) if (path / ABOUT).is_file() else of_files(path, reading)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} does not exist: name a folder of pictures, a zip archive of them, an npz file "
            "or data:NAME."
        )
    if path.suffix == ".npz":
        return _in_memory(npz(path), reading)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{name} is neither a folder nor a zip archive nor an npz file.")
    return of_files(path, reading)
