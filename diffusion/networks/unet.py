"""The U-Net of DDPM (App. B), with the original's module names and initialisation.

The fields that diffusers' UNet2DModel has too, and DDPM's code has not, are called as there; under
their defaults, which are not UNet2DModel's, it is the paper's network.

In bfloat16, whose 8 significant bits are fewer than an image's pixels have beside small noise,
everything that x_t, t or the output pass whole stays float32: conv_in, the path of t and labels,
the attention's logits, norm_out and conv_out.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.networks.layers import (
    ClassEmbedding,
    Dtype,
    Time,
    TimeEmbedding,
    attention,
    conv_general_dilated,
    dense,
    fourier_features,
    kernel_init,
)
from diffusion.networks.network import check_heads, check_label_dropout, check_levels
from diffusion.networks.text import (
    Context,
    CrossAttention,
    TextSettings,
    check_text,
    read_caption,
)


class Settings(NamedTuple):
    """What every block of one network shares."""

    dropout: float
    num_heads: int
    norm_groups: int
    remat: bool
    dtype: Dtype
    norm_eps: float = 1e-6
    attention_head_dim: int = 0
    downsample_padding: int = 0

    def heads_of(self, channels: int) -> int:
        """How many heads the attention of so many channels has."""
        return channels // self.attention_head_dim if self.attention_head_dim else self.num_heads


def conv3x3(
    features: int,
    name: str,
    dtype: Dtype,
    scale: float = 1.0,
    stride: int = 1,
    padding: str | int = "SAME",
) -> nn.Conv:
    """A 3x3 convolution, by default padded as TensorFlow does: bottom and right only at stride 2.

    Args:
        padding: or pixels on every side.
    """
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=padding,
        kernel_init=kernel_init(scale),
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def group_norm(name: str, settings: Settings) -> nn.GroupNorm:
    """GroupNorm; statistics are float32 whatever the dtype.

    The variance is taken in a second pass: as E[x^2] - E[x]^2 it would be all rounding where a
    group's mean is large beside its deviation, and the second pass costs 1 or 2 per cent of a norm.
    """
    return nn.GroupNorm(
        settings.norm_groups,
        epsilon=settings.norm_eps,
        dtype=settings.dtype,
        use_fast_variance=False,
        name=name,
    )


class ResidualBlock(nn.Module):
    """norm, swish, conv; + time; norm, swish, dropout, conv (zero at first); + shortcut.

    Without `temb` it is the block of a network that knows no time.
    """

    features: int
    settings: Settings

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
        dtype = self.settings.dtype
        h = nn.swish(group_norm("norm1", self.settings)(x))
        h = conv3x3(self.features, "conv1", dtype)(h)
        if temb is not None:
            shift = dense(self.features, "temb_proj", jnp.float32)(nn.swish(temb))
            h += shift.astype(dtype)[:, None, None, :]
        h = nn.swish(group_norm("norm2", self.settings)(h))
        h = nn.Dropout(self.settings.dropout, deterministic=not train)(h)
        h = conv3x3(self.features, "conv2", dtype, scale=0.0)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, "nin_shortcut", dtype)(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the H * W positions with a residual that is zero at first."""

    settings: Settings

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        num_heads, dtype = self.settings.heads_of(channels), self.settings.dtype
        head = channels // num_heads
        h = group_norm("norm", self.settings)(x).reshape(batch, height * width, channels)

        def heads(name: str) -> jax.Array:
            # Heads before positions: what a batched matrix product takes without copying.
            y = dense(channels, name, dtype)(h).reshape(batch, -1, num_heads, head)
            return y.swapaxes(1, 2)

        q, k, v = (heads(name) for name in "qkv")
        h = attention(q, k, v).swapaxes(1, 2).reshape(x.shape)
        return x + dense(channels, "proj_out", dtype, scale=0.0)(h)


class TextAttention(nn.Module):
    """What every position asks the words of a caption, with a residual that is zero at first."""

    settings: Settings

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        batch, height, width, channels = x.shape
        num_heads, dtype = self.settings.heads_of(channels), self.settings.dtype
        asked = CrossAttention(num_heads, dtype, name="cross")
        h = asked(x.reshape(batch, height * width, channels), context)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution.

    padding: 0 pads at the bottom and right, as TensorFlow does, 1 on every side.
    """

    dtype: Dtype
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv3x3(x.shape[-1], "conv", self.dtype, stride=2, padding=self.padding or "SAME")(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition, then convolves."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv3x3(x.shape[-1], "conv", self.dtype)(x)


def residual_block(features: int, settings: Settings, name: str) -> ResidualBlock:
    """A ResidualBlock, rematerialised where the settings say so."""
    block = nn.remat(ResidualBlock, static_argnums=(3,)) if settings.remat else ResidualBlock
    return block(features, settings, name=name)


class Down(nn.Module):
    """One level on the way down; returns every activation that the way up will need."""

    features: int
    num_blocks: int
    attention: bool
    downsample: bool
    settings: Settings

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, context: Context | None, train: bool
    ) -> list[jax.Array]:
        skips = []
        for j in range(self.num_blocks):
            x = residual_block(self.features, self.settings, f"block_{j}")(x, temb, train)
            if self.attention:
                x = Attention(self.settings, name=f"attn_{j}")(x)
            if context is not None:
                x = TextAttention(self.settings, name=f"text_{j}")(x, context)
            skips.append(x)
        if self.downsample:
            halving = self.settings.dtype, self.settings.downsample_padding
            skips.append(Downsample(*halving, name="downsample")(x))
        return skips


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    settings: Settings

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, context: Context | None, train: bool
    ) -> jax.Array:
        features = x.shape[-1]
        x = residual_block(features, self.settings, "block_1")(x, temb, train)
        x = Attention(self.settings, name="attn_1")(x)
        if context is not None:
            x = TextAttention(self.settings, name="text_1")(x, context)
        return residual_block(features, self.settings, "block_2")(x, temb, train)


class Up(nn.Module):
    """One level on the way up; every block takes one activation of the way down, last first."""

    features: int
    attention: bool
    upsample: bool
    settings: Settings

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        skips: list[jax.Array],
        temb: jax.Array,
        context: Context | None,
        train: bool,
    ) -> jax.Array:
        for j, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = residual_block(self.features, self.settings, f"block_{j}")(x, temb, train)
            if self.attention:
                x = Attention(self.settings, name=f"attn_{j}")(x)
            if context is not None:
                x = TextAttention(self.settings, name=f"text_{j}")(x, context)
        if self.upsample:
            x = Upsample(self.settings.dtype, name="upsample")(x)
        return x


class UNet(nn.Module):
    """eps, x_0, mu or v (and a variance) from x_t and t; all fields are the config's `model`."""

    out_channels: int  # image channels, twice that where the variance is learned
    channels: int = 128  # width of the first level, a multiple of norm_groups
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)  # width of each level, in `channels`
    num_blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (16,)  # heights at which every block gets attention
    dropout: float = 0.0  # probability of dropping an activation inside every residual block
    num_heads: int = 1  # attention heads
    attention_head_dim: int = 0  # channels of a head, in place of their number; 0: num_heads
    norm_groups: int = 32  # groups of every GroupNorm
    norm_eps: float = 1e-6  # added to the variances of every GroupNorm
    flip_sin_to_cos: bool = False  # cosines before sines in the time embedding
    freq_shift: int = 1  # of its frequencies, see `timestep_embedding`
    downsample_padding: int = 0  # of what halves images: 0 bottom and right, 1 every side
    fourier_features: tuple[int, ...] = ()  # n of what the input is given as well, see there
    num_classes: int | None = None  # number of labels, for a class-conditional network
    text: TextSettings | None = None  # of captions, for a network that is told them
    cross_attention_resolutions: tuple[int, ...] = ()  # heights at which blocks attend to words
    label_dropout: float = 0.0  # share of labels that training replaces by the null class
    remat: bool = False  # recompute the blocks in the backward pass instead of storing them
    dtype: Dtype = jnp.float32  # of the blocks' computation; parameters are float32 always

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses images and widths that this network cannot process.

        Raises:
            ValueError: saying what came, what is allowed and what to change.
        """
        check_label_dropout(self.label_dropout, self.num_classes)
        check_text(self.text, bool(self.cross_attention_resolutions))
        check_levels(
            image_shape,
            [self.channels * multiplier for multiplier in self.channel_multipliers],
            {
                "attention_resolutions": self.attention_resolutions,
                "cross_attention_resolutions": self.cross_attention_resolutions,
            },
            self.norm_groups,
        )
        check_heads(self.attending(image_shape[0]), self.num_heads, self.attention_head_dim)
        if self.freq_shift >= self.channels // 2:
            raise ValueError(
                f"freq_shift = {self.freq_shift} must be below {self.channels // 2}, half of "
                f"channels = {self.channels}: the frequencies of the time embedding end there."
            )

    def attending(self, height: int) -> list[int]:
        """Channels of the levels with attention of any kind, for images of that height.

        The last level is one of them, for its middle attends.
        """
        resolutions = {*self.attention_resolutions, *self.cross_attention_resolutions}
        last = len(self.channel_multipliers) - 1
        return [
            self.channels * multiplier
            for i, multiplier in enumerate(self.channel_multipliers)
            if i == last or height // 2**i in resolutions
        ]

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
        settings = Settings(
            *(self.dropout, self.num_heads, self.norm_groups, self.remat, self.dtype),
            *(self.norm_eps, self.attention_head_dim, self.downsample_padding),
        )
        embedding = self.flip_sin_to_cos, self.freq_shift
        temb = TimeEmbedding(self.channels, 4 * self.channels, *embedding, name="temb")(t)
        if self.num_classes is not None:
            share, width = float(self.label_dropout), 4 * self.channels
            table = ClassEmbedding(self.num_classes, width, share, name="class_embedding")
            temb += table(labels, t.shape[0], train)
        elif labels is not None:
            raise ValueError("labels were given to a network without num_classes.")
        context = read_caption(self.text, tokens, train)
        if context is not None:
            temb += dense(4 * self.channels, "text_proj", jnp.float32)(context.mean())

        def told(height: int) -> Context | None:
            return context if height in self.cross_attention_resolutions else None

        last = len(self.channel_multipliers) - 1
        x = fourier_features(x, self.fourier_features)
        h = conv3x3(self.channels, "conv_in", jnp.float32)(x).astype(self.dtype)
        skips, attention = [h], []
        for i, multiplier in enumerate(self.channel_multipliers):
            attention.append(h.shape[1] in self.attention_resolutions)
            features = self.channels * multiplier
            down = Down(
                features, self.num_blocks, attention[i], i < last, settings, name=f"down_{i}"
            )
            skips += down(h, temb, told(h.shape[1]), train)
            h = skips[-1]
        h = Middle(settings, name="mid")(h, temb, told(h.shape[1]), train)
        for i, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            split = len(skips) - (self.num_blocks + 1)
            up = Up(self.channels * multiplier, attention[i], i > 0, settings, name=f"up_{i}")
            h = up(h, skips[split:], temb, told(h.shape[1]), train)
            skips = skips[:split]
        h = nn.swish(group_norm("norm_out", settings._replace(dtype=jnp.float32))(h))
        return conv3x3(self.out_channels, "conv_out", jnp.float32, scale=0.0)(h)
