"""The Inception network of FID, IS, KID and precision/recall: "2015-12-05" of torch-fidelity.

It differs from the Inception-v3 that other libraries ship: the 3x3 average pools do not count
their padding, Mixed_7c pools by the maximum, there are 1008 classes, and images are resized as
TensorFlow 1 did. Modules have the names of the published file, whose reader is
`experiments.features.inception_weights`. Everything is float32 at the highest precision, whatever
the global setting: a bfloat16 convolution costs 6 % of the deviation between images.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

SIZE = 299
FEATURES = 2048
CLASSES = 1008
EPSILON = 1e-3  # of every BatchNorm
PRECISION = jax.lax.Precision.HIGHEST
Images = UInt8[Array, "b h w c"] | Float[Array, "b h w c"]
Params = dict[str, Any]
Layer = tuple[int, int | tuple[int, int]]  # features, kernel


def source_positions(size_in: int, size_out: int) -> np.ndarray:
    """f32[size_out] in [0, size_in): where each pixel is read, i * size_in / size_out.

    No half-pixel offset; float32, as in TensorFlow 1's ResizeBilinear.
    """
    return np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)


def interpolation(size_in: int, size_out: int) -> np.ndarray:
    """f32[size_out, size_in]: bilinear resizing of one axis, without antialiasing; rows sum to 1.

    A position beyond the last pixel takes the last pixel.
    """
    position = source_positions(size_in, size_out)
    below = np.clip(position.astype(np.int64), 0, size_in - 1)
    above = np.minimum(below + 1, size_in - 1)
    weight = position - below.astype(np.float32)
    rows = np.arange(size_out)
    matrix = np.zeros((size_out, size_in), np.float32)
    np.add.at(matrix, (rows, below), 1 - weight)
    np.add.at(matrix, (rows, above), weight)
    return matrix


def scale(x: jax.Array) -> jax.Array:
    """[0, 255] to [-1, 1): (x - 128) / 128."""
    return (x - 128) / 128


def prepare(images: Images) -> Float[Array, "b 299 299 3"]:
    """The network's input: resized to 299 x 299 and scaled to [-1, 1).

    Args:
        images: u8[B, H, W, C], or f32 in [0, 255] where samples are not rounded, of any size;
            C = 3, or 1, which is repeated to three channels.

    Raises:
        ValueError: for another dtype, rank or number of channels.
    """
    if (
        images.ndim != 4
        or images.shape[-1] not in (1, 3)
        or images.dtype
        not in (
            jnp.uint8,
            jnp.float32,
        )
    ):
        raise ValueError(
            "Inception takes uint8 or float32 images of shape [B, H, W, 3] or [B, H, W, 1], not "
            f"{images.dtype} of shape {images.shape}."
        )
    _, height, width, _ = images.shape
    rows, columns = interpolation(height, SIZE), interpolation(width, SIZE)
    x = jnp.asarray(images, jnp.float32)
    x = jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=PRECISION)
    return jnp.broadcast_to(scale(x), (*x.shape[:-1], 3))


def average_pool(x: jax.Array) -> jax.Array:
    """3x3 means at every position over the pixels that exist: padding is not counted."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maxima at every position."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def halve(x: jax.Array) -> jax.Array:
    """3x3 maxima at every other position, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm by stored statistics, ReLU."""

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        init, shape = nn.initializers.zeros, (self.features,)
        kernel = self.param("kernel", init, (*size, x.shape[-1], self.features))
        gain, bias = self.param("scale", init, shape), self.param("bias", init, shape)
        mean, variance = self.param("mean", init, shape), self.param("variance", init, shape)
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )
        return nn.relu((x - mean) / jnp.sqrt(variance + EPSILON) * gain + bias)


def chain(x: jax.Array, name: str, *layers: Layer) -> jax.Array:
    """Convolutions name_1, name_2, ... that keep height and width."""
    for i, (features, kernel) in enumerate(layers, 1):
        x = ConvNorm(features, kernel, name=f"{name}_{i}")(x)
    return x


def reduction(x: jax.Array, features: int, name: str) -> jax.Array:
    """A 3x3 convolution of stride 2 without padding."""
    return ConvNorm(features, 3, 2, "VALID", name=name)(x)


class InceptionA(nn.Module):
    """Mixed_5b to 5d: 1x1, 5x5, twice 3x3, and an average pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            ConvNorm(64, name="branch1x1")(x),
            chain(x, "branch5x5", (48, 1), (64, 5)),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            ConvNorm(self.pool_features, name="branch_pool")(average_pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionB(nn.Module):
    """Mixed_6a, which halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = chain(x, "branch3x3dbl", (64, 1), (96, 3))
        branches = [
            reduction(x, 384, "branch3x3"),
            reduction(double, 96, "branch3x3dbl_3"),
            halve(x),
        ]
        return jnp.concatenate(branches, -1)


class InceptionC(nn.Module):
    """Mixed_6b to 6e: 1x1, a 7x7 in two factors, twice that, and an average pool."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, row, column = self.inner, (1, 7), (7, 1)
        double = ((n, 1), (n, column), (n, row), (n, column), (192, row))
        branches = [
            ConvNorm(192, name="branch1x1")(x),
            chain(x, "branch7x7", (n, 1), (n, row), (192, column)),
            chain(x, "branch7x7dbl", *double),
            ConvNorm(192, name="branch_pool")(average_pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionD(nn.Module):
    """Mixed_7a, which halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = chain(x, "branch3x3", (192, 1))
        factored = chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
        branches = [
            reduction(single, 320, "branch3x3_2"),
            reduction(factored, 192, "branch7x7x3_4"),
            halve(x),
        ]
        return jnp.concatenate(branches, -1)


class InceptionE(nn.Module):
    """Mixed_7b and 7c, where a 3x3 is a 1x3 beside a 3x1.

    maximum: what pools, Mixed_7c's 3x3 maximum or Mixed_7b's average.
    """

    maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = chain(x, "branch3x3", (384, 1))
        double = chain(x, "branch3x3dbl", (448, 1), (384, 3))
        pooled = max_pool(x) if self.maximum else average_pool(x)
        branches = [
            ConvNorm(320, name="branch1x1")(x),
            ConvNorm(384, (1, 3), name="branch3x3_2a")(single),
            ConvNorm(384, (3, 1), name="branch3x3_2b")(single),
            ConvNorm(384, (1, 3), name="branch3x3dbl_3a")(double),
            ConvNorm(384, (3, 1), name="branch3x3dbl_3b")(double),
            ConvNorm(192, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(branches, -1)


def stem(x: jax.Array) -> jax.Array:
    """f32[B, 299, 299, 3] to f32[B, 35, 35, 192]."""
    x = reduction(x, 32, "Conv2d_1a_3x3")
    x = ConvNorm(32, 3, padding="VALID", name="Conv2d_2a_3x3")(x)
    x = ConvNorm(64, 3, name="Conv2d_2b_3x3")(x)
    x = ConvNorm(80, name="Conv2d_3b_1x1")(halve(x))
    return halve(ConvNorm(192, 3, padding="VALID", name="Conv2d_4a_3x3")(x))


class Inception(nn.Module):
    """From prepared images to features and logits; the published bias of the logits is not used."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b 299 299 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        x = stem(x)
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(pool_features, name=name)(x)
        x = InceptionB(name="Mixed_6a")(x)
        for name, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = InceptionC(inner, name=f"Mixed_6{name}")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(maximum=False, name="Mixed_7b")(x)
        x = InceptionE(maximum=True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        fc = nn.Dense(CLASSES, use_bias=False, precision=PRECISION, name="fc")
        return features, fc(features)


def extract(
    params: Params, images: Images
) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
    """Features and logits of images; to be jitted by the caller.

    Args:
        params: from `load_inception`.
        images: u8[B, H, W, 3], or u8[B, H, W, 1], whose channel is repeated; f32 in [0, 255] too.

    Returns:
        f32[B, 2048], the pooled features, never negative, of FID, KID and precision/recall; and
        f32[B, 1008], the logits of the Inception Score, without their bias as in its original.

    Raises:
        ValueError: for images of another kind.
    """
    outputs: Any = Inception().apply({"params": params}, prepare(images))
    return outputs


@functools.cache
def param_shapes() -> Params:
    """The shapes of the network's parameters, without computing anything."""
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
