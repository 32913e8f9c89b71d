"""Reading a picture: which files Pillow reads, 8 bits, background, channels, crop and size."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# file, its name for messages -> uint8[H, W, C]
Decode = Callable[[str | BinaryIO, str], UInt8[np.ndarray, "h w c"]]

BACKGROUNDS = MappingProxyType({"white": 255, "black": 0})
# What Pillow only recognises, or leaves to other programs.
NO_PICTURES = frozenset(["BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"])
PLUGINS = MappingProxyType({".heic": "pillow-heif", ".heif": "pillow-heif"})
RANGES = MappingProxyType({"I": (0.0, 65535.0), "F": (0.0, 1.0)})  # black and white, by mode
OPTION = "--config.data.value_range (of experiments.fid: --value_range)"
LOOKED_AT = 32  # pictures, for the grey levels of all
FEW = 64  # grey levels of 256


class ValueRangeError(ValueError):
    """Pixels outside the range of values in force."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, those of an installed pillow-heif among them."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.preinit()  # the usual ones first
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_PICTURES)


@functools.cache
def extensions() -> frozenset[str]:
    """How the names of files end that are read, in lower case."""
    known = {*formats(), "MPO"}  # MPO is opened as JPEG
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


class Values(NamedTuple):
    """The extreme values of a picture or several, and whether they are of more than 8 bits."""

    lowest: float
    highest: float
    deep: bool


def _values(image: Image.Image) -> Values:
    """Of one picture, as its file holds them."""
    if image.mode[0] in RANGES:
        pixels = np.asarray(image)
        return Values(float(pixels.min()), float(pixels.max()), True)
    bands: Any = image.getextrema()  # a pair, or one for each of several channels
    pairs = np.reshape(bands, (-1, 2))
    return Values(int(pairs.min()), int(pairs.max()), False)


def _of_all(found: Sequence[Values]) -> Values:
    lowest, highest, deep = zip(*found, strict=True)
    return Values(min(lowest), max(highest), any(deep))


def _likely_range(low: float, high: float) -> str:
    """Black and white where such values are found, as the option is written."""
    if low < 0:
        return "(-1,1)" if max(-low, high) <= 1 else f"({low:g},{high:g})"
    return f"(0,{2 ** math.ceil(math.log2(high + 1)) - 1})" if high > 127 else f"(0,{high:g})"


def _in_8_bits(image: Image.Image, value_range: Sequence[float]) -> Image.Image:
    """A picture of 16 bits or more, or of floating point, as grey of 8 bits.

    Raises:
        ValueRangeError: for numbers outside the range.
    """
    black, white = value_range or RANGES[image.mode[0]]
    pixels = np.asarray(image, np.float64)
    scaled = np.rint((pixels - black) * (255.0 / (white - black)))
    if scaled.size and not (np.isfinite(scaled).all() and 0 <= scaled.min() <= scaled.max() <= 255):
        low, high, _ = _values(image)
        likely = f", such as {_likely_range(low, high)}" if math.isfinite(high - low) else ""
        raise ValueRangeError(
            f"(mode {image.mode} holds {low:g} to {high:g}): {black:g} is black here and "
            f"{white:g} white. Say what is with {OPTION}{likely}."
        )
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(255 * (pixels != image.info["transparency"]).astype("u1")))
    return grey


def _flat(
    opened: Image.Image,
    channels: int,
    background: str = "white",
    value_range: Sequence[float] = (),
) -> Image.Image:
    """The picture upright, opaque, and of 8 bits in one or three channels."""
    image = ImageOps.exif_transpose(opened)
    if image.mode[0] in RANGES:
        image = _in_8_bits(image, value_range)
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (BACKGROUNDS[background],) * 3 + (255,))
        image = Image.alpha_composite(ground, image)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, image_size: int | None) -> UInt8[np.ndarray, "h w c"]:
    """A picture of 8 bits as an array.

    Args:
        image_size: side of a square in pixels, to which the shorter side is resized (Lanczos) and
            the longer one cropped centrally; None leaves all as it is.
    """
    if image_size is not None:
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image).reshape(image.height, image.width, len(image.getbands()))


def decode(
    file: str | BinaryIO,
    name: str,
    *,
    image_size: int | None,
    channels: int = 3,
    background: str = "white",
    value_range: Sequence[float] = (),
) -> UInt8[np.ndarray, "h w c"]:
    """uint8[H, W, channels] of a picture's file, as everything here reads pictures.

    Orientation tags are honoured, what is transparent lies on `background`, and of an animation the
    first picture is taken.

    Args:
        file: its path, or its bytes.
        name: for messages.
        image_size: as in `fit`.
        channels: 3, or 1 for grey.
        background: a key of BACKGROUNDS.
        value_range: which values of more than 8 bits are black and white; () is as in RANGES.

    Raises:
        ValueRangeError: it holds values outside the range.
        ValueError: the file cannot be decoded.
    """
    try:
        with Image.open(file, formats=formats()) as opened:
            return fit(_flat(opened, channels, background, value_range), image_size)
    except ValueRangeError as error:
        raise ValueRangeError(f"{name} cannot be used {error}") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ValueError(
            f"{name} cannot be used ({error}): put the file back as it was, or replace or remove "
            "it."
        ) from error


def few_levels(count: int, open_file: Callable[[int], str | BinaryIO], **how: Any) -> str:
    """What is odd about pictures that use few of 256 grey levels, "" where they use more.

    Args:
        count, open_file: how many they are, and what opens the file of one; some are looked at.
        how: background and value_range, as of `decode`.
    """
    held, shown = [], []
    for index in np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist():
        with contextlib.suppress(Exception):  # of a damaged file, which is named when it is read
            opened = Image.open(open_file(index), formats=formats())
            shown.append(_values(_flat(opened, channels=3, **how)))
            held.append(_values(opened))
    if not shown:
        return ""
    (dark, bright, _), (low, high, deep) = _of_all(shown), _of_all(held)
    if bright - dark > FEW:
        return ""
    seen = f"{len(shown)} pictures that were looked at use the grey levels {dark:g} to {bright:g} "
    if not deep or low == high == 0:
        return (
            f"{seen}of 0 to 255 alone: stretch them before, if more is meant. (Of colours of 16 "
            "bits Pillow reads the upper 8.)"
        )
    return (
        f"{seen}of 0 to 255 alone, as their files hold {low:g} to {high:g}. If that is black to "
        f"white, or nearly, say so with {OPTION}, such as {_likely_range(low, high)}."
    )
