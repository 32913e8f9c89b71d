"""A text encoder that is trained with the network that asks it, and what it is asked through.

A Transformer over the words of a caption, whose rows of numbers begin with a start token and end in
padding; alone, the start token says "no caption". As in latent diffusion (Rombach et al. 2022,
section 3.3), an image's positions attend to the words; the mean word joins the time embedding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion.networks.layers import Dtype, attention, dense


class TextSettings(NamedTuple):
    """What a text encoder is made of; all but the first two are the config's `text`."""

    vocabulary_size: int  # numbers that words can have, with those of padding and start
    length: int  # of a caption, with its start
    width: int = 128  # of a word's vector, a multiple of num_heads
    depth: int = 2  # blocks
    num_heads: int = 4  # attention heads
    dropout: float = 0.1  # share of captions that training replaces by none


class Context(NamedTuple):
    """A caption as a network is told it."""

    words: Float[Array, "b l c"]
    mask: Bool[Array, "b l"]  # whether there is a word, or the start, and no padding

    def mean(self) -> Float[Array, "b c"]:
        """The mean of the words that are there."""
        there = self.mask.astype(self.words.dtype)[..., None]
        return jnp.sum(self.words * there, axis=1) / jnp.sum(there, axis=1)


def _heads(x: Float[Array, "b n c"], num_heads: int) -> Float[Array, "b heads n c"]:
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def attend(
    num_heads: int,
    x: Float[Array, "b n c"],
    context: Float[Array, "b m d"],
    mask: Bool[Array, "b m"],
    dtype: Dtype,
    scale: float = 1.0,
) -> Float[Array, "b n c"]:
    """Queries of x at keys and values of what the mask leaves of the context.

    To be called in a compact module, whose parameters q, k, v and proj_out it makes; `scale` is of
    the last one's, 0 for a residual that is zero at first.
    """
    features = x.shape[-1]
    q = dense(features, "q", dtype)(x)
    k, v = (dense(features, name, dtype)(context) for name in "kv")
    q, k, v = (_heads(y, num_heads) for y in (q, k, v))
    h = attention(q, k, v, mask)
    return dense(features, "proj_out", dtype, scale)(h.swapaxes(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """What the positions of an image, normalised, ask the words; zero at first."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], context: Context) -> Float[Array, "b n c"]:
        h = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x).astype(self.dtype)
        words = context.words.astype(self.dtype)
        return attend(self.num_heads, h, words, context.mask, self.dtype, scale=0.0)


class TextBlock(nn.Module):
    """Attention among the words and an MLP, each of a normalised input."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], mask: Bool[Array, "b l"]) -> jax.Array:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)

        h = norm("norm1")(x)
        x += attend(self.num_heads, h, h, mask, jnp.float32)
        h = dense(4 * x.shape[-1], "mlp_in", jnp.float32)(norm("norm2")(x))
        return x + dense(x.shape[-1], "mlp_out", jnp.float32)(nn.gelu(h, approximate=True))


class TextEncoder(nn.Module):
    """Rows of numbers to vectors of words, in float32."""

    settings: TextSettings

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"], train: bool) -> Context:
        """The words of captions.

        Args:
            tokens: i32[B, length]: 1 first, then words from 2 on, then 0; a number out of range
                gives NaN.
            train: drop captions, with the rng stream "dropout".
        """
        settings, tokens = self.settings, jnp.asarray(tokens)
        if train and settings.dropout:
            share = settings.dropout
            drop = jax.random.bernoulli(self.make_rng("dropout"), share, tokens.shape[:1])
            first = jnp.arange(tokens.shape[1]) == 0
            tokens = jnp.where(drop[:, None] & ~first, 0, tokens)
        mask = tokens > 0
        normal = nn.initializers.normal(settings.width**-0.5)
        table = self.param("words", normal, (settings.vocabulary_size, settings.width))
        places = self.param("places", normal, (settings.length, settings.width))
        h = jnp.take(table, jnp.where(tokens < 0, len(table), tokens), axis=0, mode="fill")
        h += places[: tokens.shape[1]]
        for i in range(settings.depth):
            h = TextBlock(settings.num_heads, name=f"block_{i}")(h, mask)
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm_out")
        return Context(norm(h), mask)


def check_text(text: TextSettings | None, attends: bool) -> None:
    """Refuses a network that would attend to words without captions, and an impossible width.

    Raises:
        ValueError: naming the field.
    """
    if text is None and attends:
        raise ValueError(
            "cross-attention is to the words of captions, of which there are none. Set config.text "
            "to a text encoder, or cross_attention_resolutions = ()."
        )
    if text is not None and text.width % text.num_heads:
        raise ValueError(
            f"config.text.width = {text.width} must be divisible by config.text.num_heads = "
            f"{text.num_heads}."
        )


def read_caption(
    text: TextSettings | None, tokens: Int[Array, "b l"] | None, train: bool
) -> Context | None:
    """What a network is told of captions; to be called in its compact `__call__`.

    Raises:
        ValueError: for captions without a text encoder, or the other way round.
    """
    if (text is None) != (tokens is None):
        raise ValueError("tokens are for a network with a text encoder, which needs them.")
    if text is None or tokens is None:
        return None
    return TextEncoder(text, name="text")(tokens, train)
