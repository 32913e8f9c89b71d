"""The DiT of Peebles and Xie 2022: a vision transformer over patches, conditioned by adaLN-Zero.

Its block at width D, with LN a layer norm without parameters (section 3.2, Figure 3):

    (s_1, c_1, g_1, s_2, c_2, g_2) = W silu(temb + class) + b, with W = b = 0 at first
    x <- x + g_1 * attention(LN(x) (1 + c_1) + s_1)
    x <- x + g_2 * mlp(LN(x) (1 + c_2) + s_2)

In bfloat16 everything that x_t, t or the output pass whole stays float32, as in the U-Net: the
patches' first and last map, the path of t and labels, the attention's logits and the last norm.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion.networks.layers import (
    ClassEmbedding,
    Dtype,
    Time,
    TimeEmbedding,
    attention,
    dense,
    fourier_features,
)
from diffusion.networks.network import check_label_dropout
from diffusion.networks.text import (
    Context,
    CrossAttention,
    TextSettings,
    check_text,
    read_caption,
)

SINUSOIDS = 256  # of t, before the two layers of its embedding


class Settings(NamedTuple):
    """What every block of one network shares."""

    num_heads: int
    mlp_ratio: float
    dropout: float
    dtype: Dtype


def patchify(x: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n p"]:
    """Patches, row by row, as tokens: each its pixels, row by row, with their channels."""
    batch, height, width, channels = x.shape
    rows, columns = height // patch_size, width // patch_size
    x = x.reshape(batch, rows, patch_size, columns, patch_size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, -1)


def unpatchify(
    tokens: Float[Array, "b n p"], patch_size: int, height: int, width: int
) -> Float[Array, "b h w c"]:
    """The inverse of `patchify` for images of that height and width."""
    batch = tokens.shape[0]
    rows, columns = height // patch_size, width // patch_size
    x = tokens.reshape(batch, rows, columns, patch_size, patch_size, -1).swapaxes(2, 3)
    return x.reshape(batch, height, width, -1)


def position_embedding(rows: int, columns: int, channels: int) -> Float[np.ndarray, "n c"]:
    """Sinusoids of a patch's place: half of the channels for its column, half for its row.

    Each half is [sin(k f_i), cos(k f_i)] with f_i = 10000^(-i / (channels / 4)).

    Args:
        rows, columns: of patches.
        channels: a multiple of 4.
    """
    frequencies = 10000.0 ** (-np.arange(channels // 4) / (channels // 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(place, frequencies) for place in (column, row)]
    halves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(halves, axis=1)


def each(layer: nn.Dense, tokens: jax.Array) -> jax.Array:
    """`layer` of every token, as one product of matrices.

    XLA:CPU takes three times as long for the gradients of the same product of three axes in a loop.
    """
    rows = layer(tokens.reshape(-1, tokens.shape[-1]))
    return rows.reshape(*tokens.shape[:-1], -1)


def modulation(condition: jax.Array, parts: int, features: int, name: str) -> list[jax.Array]:
    """Shifts, scales and gates, f32[B, 1, features], that are zero at first."""
    zeros = nn.initializers.zeros
    regressed = nn.Dense(parts * features, kernel_init=zeros, name=name)(condition)
    return jnp.split(regressed[:, None, :], parts, axis=-1)


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: Dtype) -> jax.Array:
    """LN(x) (1 + scale) + shift, taken in float32, given in `dtype`."""
    norm = nn.LayerNorm(
        epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=jnp.float32
    )
    return (norm(x) * (1 + scale) + shift).astype(dtype)


class Block(nn.Module):
    """Attention and an MLP of one hidden layer, each behind a modulated norm and a gate."""

    settings: Settings

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array, train: bool, context: Context | None = None
    ) -> jax.Array:
        features = x.shape[-1]
        num_heads, mlp_ratio, dropout, dtype = self.settings
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(
            condition, 6, features, "modulation"
        )

        h = modulated_norm(x, shift1, scale1, dtype)

        def heads(name: str) -> jax.Array:
            y = each(dense(features, name, dtype), h)
            return y.reshape(*y.shape[:2], num_heads, -1).swapaxes(1, 2)

        q, k, v = (heads(name) for name in "qkv")
        h = attention(q, k, v).swapaxes(1, 2).reshape(x.shape)
        h = each(dense(features, "proj_out", dtype), h)
        h = nn.Dropout(dropout, deterministic=not train)(h)
        x += gate1.astype(dtype) * h
        if context is not None:
            x += CrossAttention(num_heads, dtype, name="cross")(x, context)

        h = modulated_norm(x, shift2, scale2, dtype)
        h = each(dense(int(features * mlp_ratio), "mlp_in", dtype), h)
        h = each(dense(features, "mlp_out", dtype), nn.gelu(h, approximate=True))
        h = nn.Dropout(dropout, deterministic=not train)(h)
        return x + gate2.astype(dtype) * h


class DiT(nn.Module):
    """eps, x_0, mu or v (and a variance) from x_t and t; all fields are the config's `model`."""

    out_channels: int  # image channels, twice that where the variance is learned
    patch_size: int = 2  # pixels of a patch's side; it divides height and width
    hidden_size: int = 384  # width of a token, a multiple of 4 and of num_heads
    depth: int = 12  # blocks
    num_heads: int = 6  # attention heads
    mlp_ratio: float = 4.0  # width of the MLPs' hidden layer, in `hidden_size`
    dropout: float = 0.0  # probability of dropping what attention or MLP adds, per activation
    fourier_features: tuple[int, ...] = ()  # n of what the input is given as well, see there
    num_classes: int | None = None  # number of labels, for a class-conditional network
    text: TextSettings | None = None  # of captions, which every block then attends to
    label_dropout: float = 0.0  # share of labels that training replaces by the null class
    remat: bool = False  # recompute the blocks in the backward pass instead of storing them
    dtype: Dtype = jnp.float32  # of the blocks' computation; parameters are float32 always

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses images and widths that this network cannot process.

        Raises:
            ValueError: saying what came, what is allowed and what to change.
        """
        check_label_dropout(self.label_dropout, self.num_classes)
        check_text(self.text, attends=False)
        height, width, _ = image_shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size = {self.patch_size} does not divide a {height}x{width} image. Choose "
                "a divisor of both sides, or pad or resize the images."
            )
        if self.hidden_size % 4 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be divisible by num_heads = "
                f"{self.num_heads}, and by 4 for the position embedding."
            )
        hidden = self.hidden_size * self.mlp_ratio
        if hidden < 1 or hidden % 1:
            raise ValueError(
                f"mlp_ratio = {self.mlp_ratio} times hidden_size = {self.hidden_size} is {hidden}, "
                "and must be a whole number of channels."
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Time,
        labels: Int[Array, " b"] | None = None,
        tokens: Int[Array, "b l"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w out"]:
        """The network's output for noised images.

        Args:
            x: f32[B, H, W, C], x_t.
            t: i32[B], timesteps as the schedule's `told` gives them; f32[B] between them.
            labels: i32[B], see `ClassEmbedding`. Only for a network with num_classes.
            tokens: i32[B, length], see `TextEncoder`. For a network with text, and only for it.
            train: apply dropout, of labels and captions too, with the rng stream "dropout".

        Raises:
            ValueError: see `check`; also for labels without num_classes, and tokens without text.
        """
        self.check(x.shape[1:])
        height, width, patch, features = *x.shape[1:3], self.patch_size, self.hidden_size
        condition = TimeEmbedding(SINUSOIDS, features, name="temb")(t)
        if self.num_classes is not None:
            table = ClassEmbedding(
                self.num_classes, features, float(self.label_dropout), name="class_embedding"
            )
            condition += table(labels, t.shape[0], train)
        elif labels is not None:
            raise ValueError("labels were given to a network without num_classes.")
        context = read_caption(self.text, tokens, train)
        if context is not None:
            condition += dense(features, "text_proj", jnp.float32)(context.mean())
        condition = nn.swish(condition)

        x = fourier_features(x, self.fourier_features)
        h = each(dense(features, "patch_in", jnp.float32), patchify(x, patch))
        places = position_embedding(height // patch, width // patch, features)
        h = (h + jnp.asarray(places, jnp.float32)).astype(self.dtype)
        settings = Settings(self.num_heads, self.mlp_ratio, self.dropout, self.dtype)
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for i in range(self.depth):
            h = block(settings, name=f"block_{i}")(h, condition, train, context)

        shift, scale = modulation(condition, 2, features, "modulation_out")
        h = modulated_norm(h, shift, scale, jnp.float32)
        pixels = patch * patch * self.out_channels
        closing = nn.Dense(pixels, kernel_init=nn.initializers.zeros, name="patch_out")
        return unpatchify(each(closing, h), patch, height, width)
