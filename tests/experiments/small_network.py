"""Two convolutions: the least network that is told t and labels and has dropout."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.networks.layers import kernel_init, timestep_embedding
from diffusion.networks.network import check_label_dropout


class SmallNetwork(nn.Module):
    """A `diffusion.networks.network.Network`, for laws that hold of any.

    It is traced and compiled in a fraction of the smallest U-Net's time.
    """

    out_channels: int
    channels: int = 8
    dropout: float = 0.0
    num_classes: int | None = None
    label_dropout: float = 0.0
    text: Any = None
    dtype: Any = jnp.float32

    def check(self, image_shape: tuple[int, ...]) -> None:
        check_label_dropout(self.label_dropout, self.num_classes)
        assert self.text is None

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, labels: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        told = nn.Dense(self.channels, name="time")(timestep_embedding(t, self.channels))
        if self.num_classes is not None:
            null = jnp.full(t.shape, self.num_classes)
            embedding = nn.Embed(self.num_classes + 1, self.channels, name="class_embedding")
            told += embedding(null if labels is None else labels)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_in")(x)
        h = nn.swish(h + told[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        kernel = kernel_init(0.0)  # almost zero, as of the others
        return nn.Conv(self.out_channels, (3, 3), kernel_init=kernel, name="conv_out")(h)
