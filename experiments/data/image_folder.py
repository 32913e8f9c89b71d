"""Own pictures: held-out split, classes, and what is odd about them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments.data.dataset import SPLITS, Dataset, FileFacts, open_named_split
from experiments.data.pictures import Pictures, open_pictures
from experiments.data.reader import BACKGROUNDS, ValueRangeError, decode, few_levels
from experiments.lookup import choose

MOST_FILES = 100_000  # that are asked for their size
NAMED = 20  # classes at most that an error names


def is_test(path: str, test_fraction: float) -> bool:
    """Whether a picture is held out; a hash of its relative path decides, so others move none."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:8], "big") < test_fraction * 2**64


class ImageFolder:
    """Pictures decoded when read; [i] is {"image": uint8[S, S, C], "label": int32[]}."""

    def __init__(
        self,
        path: str,
        pictures: Pictures,
        indices: list[int],
        options: dict[str, Any],
        classes: Sequence[str],
    ):
        """Args:
        path: for messages.
        pictures: of which those at `indices` are in here.
        options: of `decode`.
        classes: names by number; none: every label is 0.
        """
        self._path, self._pictures, self._indices = path, pictures, indices
        self._options = options
        self._numbers = [classes.index(name) for name in pictures.classes] if classes else []

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = self._indices[index]
        name = f"{self._path}/{self._pictures.names[index]}"
        try:
            image = decode(self._pictures.open(index), name, **self._options)
        except ValueRangeError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error} A training that began with another file or none then goes on with "
                "--continue_with_new_data."
            ) from error
        label = self._numbers[self._pictures.label(index)] if self._numbers else 0
        return {"image": image, "label": np.asarray(label, np.int32)}

    def files(self) -> list[FileFacts]:
        """Those of the pictures; of more than MOST_FILES every so many are looked at."""
        names = [FileFacts("names", [self._pictures.names[i] for i in self._indices], 0)]
        every = -(-len(self._indices) // MOST_FILES)
        return names + [self._pictures.facts(index) for index in self._indices[::every]]

    def remarks(self) -> list[str]:
        """Those on the pictures."""
        how = {name: self._options[name] for name in ("background", "value_range")}
        return remarks(self._pictures, self._path, **how)


def remarks(pictures: Pictures, path: str, **how: Any) -> list[str]:
    """Lines on what was left out of a path, and on pictures that use few grey levels.

    Args:
        how: as of `few_levels`.
    """
    few = few_levels(len(pictures.names), pictures.open, **how)
    lines = [f"left out  of {path}: {pictures.left_out}"] if pictures.left_out else []
    return [*lines, f"WARNING   {few}"] if few else lines


def class_names(
    pictures: Pictures, path: str, num_classes: int, names: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the classes of pictures in the order of their numbers; () where none are wanted.

    Args:
        path: for messages.
        num_classes: how many there are to be; 0 is none.
        names: as of `image_folder`.

    Raises:
        ValueError: there are others.
    """
    if not num_classes:
        return ()
    if names and len(set(names)) != num_classes:
        raise ValueError(
            f"config.data.num_classes = {num_classes}, but config.data.classes names "
            f"{len(set(names))}: {_listed(names)}. Make them agree."
        )
    if names:
        new = [name for name in pictures.classes if name not in names]
        if new:
            raise ValueError(
                f"The pictures in {path} have the class {new[0]!r}, which is none of this run's: "
                f"{_listed(names)}. Move it away, or begin anew in another --workdir."
            )
        return tuple(names)
    found = pictures.classes if names is None else pictures.classes_by_alphabet
    wrong = f"config.data.num_classes = {num_classes}, but the pictures in {path}"
    if len(found) < 2:
        where = f"all lie in the folder {found[0]!r}" if any(found) else "lie in no folders"
        raise ValueError(
            f"{wrong} {where}, and each folder is a class (of a data set of the hub, each label). "
            "Set it to 0 for no labels, or sort them into folders."
        )
    if "" in found and names is None:
        loose = [name for name in pictures.names if "/" not in name]
        raise ValueError(
            f"{wrong} do not all have a class: {len(loose):,} lie beside the folders, such as "
            f"{loose[0]!r}. Move them into folders or away, or set it to 0 for no labels."
        )
    if len(found) != num_classes:
        raise ValueError(
            f"{wrong} have {len(found)} classes: {_listed(found)}. Set it to {len(found)}, or to "
            "0 for no labels."
        )
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(repr, names[:NAMED])) + ", ..." * (len(names) > NAMED)


def find_classes(path: str, num_classes: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    """`class_names` of the pictures at a path."""
    return class_names(_train(open_pictures(path), path), path, num_classes, classes)


def _train(there: Mapping[str, Pictures], path: str) -> Pictures:
    if "train" not in there:
        raise ValueError(f"{path} has no split 'train'; it has {', '.join(there)}.")
    return there["train"]


def open_split(
    split: str,
    path: str,
    test_fraction: float,
    options: dict[str, Any],
    num_classes: int,
    classes: Sequence[str] | None,
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
    pictures = _train(there, path)
    own = next((there[name] for name in ("test", "validation") if name in there), None)
    pictures = own if own is not None and split == "test" else pictures
    names = class_names(pictures, path, num_classes, classes)
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
    return ImageFolder(path, pictures, chosen, options, names)


def image_folder(
    path: str,
    image_size: int,
    test_fraction: float = 0.05,
    channels: int = 3,
    background: str = "white",
    value_range: Sequence[float] = (),
    num_classes: int = 0,
    classes: Sequence[str] | None = None,
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
        value_range: the values that are black and white in pictures of more than 8 bits; () is 0
            and 65535, and of floating point 0 and 1.
        num_classes: of the folders directly in `path`, or of its column of labels; 0: no labels.
        classes: their names in the order of their numbers. None finds them, a folder 2 before a
            folder 10; () by the alphabet, as runs numbered them that kept no names.

    Raises:
        ValueError: for other channels or another background.
    """
    if channels not in (1, 3):
        raise ValueError(f"config.data.channels = {channels} must be 3, or 1 for grey.")
    choose(BACKGROUNDS, background, "data.background")
    shown = {"background": background, "value_range": value_range}
    options = {"image_size": image_size, "channels": channels, **shown}
    labels: dict[str, Any] = {"path": path, "num_classes": num_classes, "classes": classes}
    kwargs = {**labels, "test_fraction": test_fraction, "options": options}
    return Dataset(
        name="image_folder",
        image_shape=(image_size, image_size, channels),
        num_classes=num_classes or None,
        open=partial(open_named_split, open_split, kwargs),
        splits=SPLITS if test_fraction else ("train",),
        classes=tuple(classes or ()) if num_classes else (),
        find_classes=partial(find_classes, **labels) if num_classes and not classes else None,
    )
