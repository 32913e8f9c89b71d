"""Images in and out of the model's range, and PNG grids of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

CAPTIONED = 96  # pixels of the width of a picture below a caption, at least
LINES, LINE = 3, 13  # of a caption at most, and pixels of the height of one


def to_model(image: UInt8[Array, "*x"], num_levels: int = 256) -> Float[Array, "*x"]:
    """Stored uint8 to float32 in [-1, 1]: 2 k / (num_levels - 1) - 1 for level k.

    Data of fewer levels than 256 are stored spread over 0..255 as well, level k of L as
    255 k / (L - 1) rounded half up, so that pictures look as they should.
    """
    level = jnp.round(image.astype(jnp.float32) * ((num_levels - 1) / 255.0))
    return level / ((num_levels - 1) / 2.0) - 1.0


def _stored(level: Float[Array, "*x"], num_levels: int) -> UInt8[Array, "*x"]:
    """Level numbers 0 .. num_levels - 1 spread over 0..255, rounded half up."""
    return jnp.floor(level * (255.0 / (num_levels - 1)) + 0.5).astype(jnp.uint8)


def to_uint8(x: Float[Array, "*x"], num_levels: int = 256) -> UInt8[Array, "*x"]:
    """float32 to stored uint8: clipped to [-1, 1], rounded half up to one of the levels."""
    half = (num_levels - 1) / 2.0
    return _stored(jnp.floor(jnp.clip(x, -1.0, 1.0) * half + (half + 0.5)), num_levels)


def to_uint8_down(x: Float[Array, "*x"], num_levels: int = 256) -> UInt8[Array, "*x"]:
    """float32 to stored uint8: clipped to [-1, 1], rounded down to one of the levels."""
    return _stored(jnp.floor((jnp.clip(x, -1.0, 1.0) + 1.0) * ((num_levels - 1) / 2)), num_levels)


def to_range(x: Float[Array, "*x"], num_levels: int = 256) -> Float[Array, "*x"]:
    """float32 clipped to [-1, 1], as float32 in [0, 255], rounded to no level however many."""
    return (jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5


QUANTIZE = MappingProxyType({"round": to_uint8, "floor": to_uint8_down, "none": to_range})


def random_flip(keys: jax.Array, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each image mirrored left to right with probability 1/2, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def tile(images: UInt8[np.ndarray, "n h w c"], columns: int) -> UInt8[np.ndarray, "hh ww c"]:
    """Images side by side in rows of `columns`, one pixel of grey between them."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    return grid


def grid(
    images: UInt8[np.ndarray, "n h w c"], columns: int | None = None
) -> UInt8[np.ndarray, "hh ww c"]:
    """`tile`, each pixel of a small image enlarged to a square that can be seen."""
    tiled = tile(images, columns or int(np.ceil(np.sqrt(len(images)))))
    zoom = max(1, 48 // images.shape[1])
    return tiled.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A caption in at most LINES lines of `width` pixels; what is beyond them is left out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    lines = [line for line in lines if line]
    if len(lines) <= LINES:
        return lines
    last = lines[LINES - 1]
    while last and font.getlength(f"{last} ...") > width:
        last = last.rpartition(" ")[0]
    return [*lines[: LINES - 1], f"{last} ..."]


def captioned(
    images: UInt8[np.ndarray, "n h w c"], captions: Sequence[str]
) -> UInt8[np.ndarray, "n hh ww c"]:
    """Each image, enlarged until words fit beside each other, below its caption on white."""
    zoom = -(-CAPTIONED // images.shape[2])
    large = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    width, font = large.shape[2], ImageFont.load_default()
    texts = [_lines(text, width, font) for text in captions]
    height = LINE * max(map(len, texts)) + 2
    strips = []
    for lines in texts:
        strip = Image.new("L", (width, height), 255)
        ImageDraw.Draw(strip).multiline_text((1, 0), "\n".join(lines), 0, font, spacing=2)
        strips.append(np.repeat(np.asarray(strip)[..., None], images.shape[-1], axis=-1))
    return np.concatenate([np.stack(strips), large], axis=1)


def _picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save(path: Path, picture: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes a PNG, which others see whole or not at all."""
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(png(picture))
    partial.replace(path)


def load(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """Reads a PNG that `save` wrote."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def png(picture: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The content of a PNG."""
    stream = io.BytesIO()
    _picture(picture).save(stream, "png")
    return stream.getvalue()
