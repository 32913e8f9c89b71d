"""The two networks of a variational autoencoder: x -> q(z | x), and z -> what p(x | z) needs.

The convolutional one has the U-Net's blocks without time and without skips (Rombach et al. 2022,
appendix E, in small); the other one has two hidden layers or more and a latent vector.
"""

import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.networks.layers import Dtype, dense
from diffusion.networks.network import check_heads, check_levels
from diffusion.networks.unet import (
    Attention,
    Downsample,
    ResidualBlock,
    Settings,
    conv3x3,
    group_norm,
)
from diffusion.structs import Gaussian

LOG_VARIANCES = (-30.0, 20.0)  # of q(z | x), beyond which float32 has nothing to tell


class Autoencoder(Protocol):
    """What the rest of the program may use of such a network, whichever it is.

    Its fields are the keywords of config.model, but for `out_channels` and `dtype`, which the
    program supplies.
    """

    @property
    def out_channels(self) -> int:
        """Channels of what decoding gives."""

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses, with a ValueError that names the field, images [H, W, C] it cannot process."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of z for images of that shape."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """{"params": ...}, float32, for images f32[B, H, W, C]."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """`encode` or `decode`, whichever `method` names.

        encode: f32[B, H, W, C] in [-1, 1] -> Gaussian, q(z | x).
        decode: (z, image_shape) -> f32[B, H, W, out_channels].
        Both take train (default False), which turns dropout on, from rngs={"dropout": key}.
        """


def posterior(parameters: Float[Array, "... k"]) -> Gaussian:
    """q(z | x) from an encoder's output: means, then log-variances, kept within float32."""
    mean, log_variance = jnp.split(parameters, 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCES))


class Stack(nn.Module):
    """Residual blocks of one width, each with attention where that is wanted."""

    features: int
    num_blocks: int
    attention: bool
    settings: Settings

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for j in range(self.num_blocks):
            x = ResidualBlock(self.features, self.settings, name=f"block_{j}")(x, None, train)
            if self.attention:
                x = Attention(self.settings, name=f"attn_{j}")(x)
        return x


class ConvVAE(nn.Module):
    """Blocks at falling resolutions and back; all fields are the config's `model`."""

    out_channels: int  # image channels, twice that where p(x | z) learns its deviation
    channels: int = 64  # width of the first level, a multiple of norm_groups
    channel_multipliers: tuple[int, ...] = (1, 2, 2)  # widths of the levels, each half the last
    num_blocks: int = 1  # residual blocks of a level, on either way
    attention_resolutions: tuple[int, ...] = ()  # heights at which every block gets attention
    latent_channels: int = 4  # of z, at the lowest resolution
    dropout: float = 0.0  # probability of dropping an activation inside every residual block
    num_heads: int = 1  # attention heads
    norm_groups: int = 32  # groups of every GroupNorm
    dtype: Dtype = jnp.float32  # of the blocks' computation; parameters are float32 always

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses images and widths that this network cannot process.

        Raises:
            ValueError: saying what came, what is allowed and what to change.
        """
        check_levels(
            image_shape,
            [self.channels * multiplier for multiplier in self.channel_multipliers],
            {"attention_resolutions": self.attention_resolutions},
            self.norm_groups,
        )
        attending = [width for width, attends in self._levels(image_shape[0]) if attends]
        check_heads(attending, self.num_heads)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Height and width of the lowest level, and latent_channels."""
        factor = 2 ** (len(self.channel_multipliers) - 1)
        return image_shape[0] // factor, image_shape[1] // factor, self.latent_channels

    def _levels(self, height: int) -> list[tuple[int, bool]]:
        """Width, and whether there is attention, from the largest level to the smallest."""
        return [
            (self.channels * multiplier, height // 2**i in self.attention_resolutions)
            for i, multiplier in enumerate(self.channel_multipliers)
        ]

    @property
    def _settings(self) -> Settings:
        return Settings(self.dropout, self.num_heads, self.norm_groups, False, self.dtype)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w out"]:
        """What decoding gives at the mean of q(z | x); for making parameters."""
        return self.decode(self.encode(x).mean, x.shape[1:])

    @nn.compact
    def encode(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Gaussian:
        """q(z | x) of images in [-1, 1]; raises as `check`."""
        self.check(x.shape[1:])
        settings, levels = self._settings, self._levels(x.shape[1])
        h = conv3x3(self.channels, "encoder_in", jnp.float32)(x).astype(self.dtype)
        for i, (features, attends) in enumerate(levels):
            stack = Stack(features, self.num_blocks, attends, settings, name=f"encoder_{i}")
            h = stack(h, train)
            if i < len(levels) - 1:
                h = Downsample(self.dtype, name=f"encoder_down_{i}")(h)
        single = settings._replace(dtype=jnp.float32)
        h = nn.swish(group_norm("encoder_norm", single)(h))
        return posterior(conv3x3(2 * self.latent_channels, "encoder_out", jnp.float32)(h))

    @nn.compact
    def decode(
        self, z: Float[Array, "b h w c"], image_shape: tuple[int, ...], *, train: bool = False
    ) -> Float[Array, "b hh ww out"]:
        """What p(x | z) needs, for images of that shape."""
        settings, levels = self._settings, self._levels(image_shape[0])
        h = conv3x3(levels[-1][0], "decoder_in", jnp.float32)(z).astype(self.dtype)
        for i, (features, attends) in reversed(list(enumerate(levels))):
            stack = Stack(features, self.num_blocks, attends, settings, name=f"decoder_{i}")
            h = stack(h, train)
            if i:  # to the next level's width at once: the largest images are the dearest
                h = h.repeat(2, axis=1).repeat(2, axis=2)
                h = conv3x3(levels[i - 1][0], f"decoder_up_{i}", self.dtype)(h)
        single = settings._replace(dtype=jnp.float32)
        h = nn.swish(group_norm("decoder_norm", single)(h))
        return conv3x3(self.out_channels, "decoder_out", jnp.float32)(h)


class MLPVAE(nn.Module):
    """Dense layers either way (Kingma and Welling, appendix C); all fields are the config's."""

    out_channels: int  # image channels, twice that where p(x | z) learns its deviation
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the encoder; the decoder's turn round
    latent_size: int = 8  # coordinates of z
    dropout: float = 0.0  # probability of dropping an activation of a hidden layer
    dtype: Dtype = jnp.float32  # of the hidden layers' computation; parameters are float32 always

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Any image will do."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """A vector, whatever the image."""
        return (self.latent_size,)

    def _hidden(self, h: jax.Array, sizes: tuple[int, ...], name: str, train: bool) -> jax.Array:
        h = h.astype(self.dtype)
        for i, size in enumerate(sizes):
            h = nn.swish(dense(size, f"{name}_{i}", self.dtype)(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return h.astype(jnp.float32)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w out"]:
        """What decoding gives at the mean of q(z | x); for making parameters."""
        return self.decode(self.encode(x).mean, x.shape[1:])

    @nn.compact
    def encode(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Gaussian:
        """q(z | x) of images in [-1, 1]."""
        h = self._hidden(x.reshape(len(x), -1), self.hidden_sizes, "encoder", train)
        return posterior(dense(2 * self.latent_size, "encoder_out", jnp.float32)(h))

    @nn.compact
    def decode(
        self, z: Float[Array, "b k"], image_shape: tuple[int, ...], *, train: bool = False
    ) -> Float[Array, "b h w out"]:
        """What p(x | z) needs, for images of that shape."""
        height, width, _ = image_shape
        h = self._hidden(z, self.hidden_sizes[::-1], "decoder", train)
        size = math.prod((height, width, self.out_channels))
        return dense(size, "decoder_out", jnp.float32)(h).reshape(len(z), height, width, -1)
