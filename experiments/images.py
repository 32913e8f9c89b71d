"""Images in and out of the model's range, and PNG grids of them."""

from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image


def to_model(image: UInt8[Array, "*x"]) -> Float[Array, "*x"]:
    """uint8 in 0..255 to float32 in [-1, 1]: x / 127.5 - 1."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[Array, "*x"]) -> UInt8[Array, "*x"]:
    """float32 to uint8, clipped to [-1, 1] and rounded half up."""
    return jnp.floor(jnp.clip(x, -1.0, 1.0) * 127.5 + 128.0).astype(jnp.uint8)


def to_levels(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """float32 clipped to [-1, 1], as float32 in [0, 255], not rounded."""
    return (jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5


def to_uint8_down(x: Float[Array, "*x"]) -> UInt8[Array, "*x"]:
    """float32 to uint8, clipped to [-1, 1] and rounded down."""
    return to_levels(x).astype(jnp.uint8)


QUANTIZE = MappingProxyType({"round": to_uint8, "floor": to_uint8_down, "none": to_levels})


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


def save_grid(path: Path, images: UInt8[np.ndarray, "n h w c"], columns: int | None = None) -> None:
    """Writes a PNG grid, each pixel of a small image enlarged to a square that can be seen."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    grid = tile(images, columns)
    zoom = max(1, 48 // images.shape[1])
    grid = grid.repeat(zoom, axis=0).repeat(zoom, axis=1)
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(path)
