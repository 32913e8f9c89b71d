"""Two convolutions: the least network that is told t, labels or captions and has dropout.

And as many either way: the least autoencoder.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.networks.autoencoder import posterior
from diffusion.networks.layers import fourier_features, kernel_init, timestep_embedding
from diffusion.networks.network import check_label_dropout
from diffusion.networks.text import TextSettings, check_text, read_caption
from diffusion.structs import Gaussian


class SmallNetwork(nn.Module):
    """A `diffusion.networks.network.Network`, for laws that hold of any.

    It is traced and compiled in a fraction of the smallest U-Net's time.
    """

    out_channels: int
    channels: int = 8
    dropout: float = 0.0
    fourier_features: tuple[int, ...] = ()
    num_classes: int | None = None
    label_dropout: float = 0.0
    text: TextSettings | None = None
    dtype: Any = jnp.float32

    def check(self, image_shape: tuple[int, ...]) -> None:
        check_label_dropout(self.label_dropout, self.num_classes)
        check_text(self.text, attends=False)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        tokens: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        told = nn.Dense(self.channels, name="time")(timestep_embedding(t, self.channels))
        if self.num_classes is not None:
            null = jnp.full(t.shape, self.num_classes)
            embedding = nn.Embed(self.num_classes + 1, self.channels, name="class_embedding")
            told += embedding(null if labels is None else labels)
        context = read_caption(self.text, tokens, train)
        if context is not None:
            told += nn.Dense(self.channels, name="caption")(context.mean())
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_in")(
            fourier_features(x, self.fourier_features)
        )
        h = nn.swish(h + told[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        kernel = kernel_init(0.0)  # almost zero, as of the others
        return nn.Conv(self.out_channels, (3, 3), kernel_init=kernel, name="conv_out")(h)


class SmallAutoencoder(nn.Module):
    """A `diffusion.networks.autoencoder.Autoencoder` of two convolutions either way."""

    out_channels: int
    channels: int = 8
    latent_channels: int = 2
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Any image of an even size will do."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape[0] // 2, image_shape[1] // 2, self.latent_channels

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x).mean, x.shape[1:])

    def _convolved(self, x: jax.Array, features: int, name: str, train: bool, stride: int = 1):
        h = nn.Conv(self.channels, (3, 3), stride, name=f"{name}_in")(x)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        return nn.Conv(features, (3, 3), name=f"{name}_out")(h)

    @nn.compact
    def encode(self, x: jax.Array, *, train: bool = False) -> Gaussian:
        return posterior(self._convolved(x, 2 * self.latent_channels, "encoder", train, 2))

    @nn.compact
    def decode(
        self, z: jax.Array, image_shape: tuple[int, ...], *, train: bool = False
    ) -> jax.Array:
        z = z.repeat(2, axis=1).repeat(2, axis=2)
        return self._convolved(z, self.out_channels, "decoder", train)
