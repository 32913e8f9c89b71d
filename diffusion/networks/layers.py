"""What networks share: maps, attention, embeddings of timestep and label, features, a convolution.

In a `lax.scan` XLA:CPU does not bring a convolution into the one layout that its fast kernels know,
and the gradient of the weights runs some 25 times slower; here both gradients have that layout.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], ...]
Dtype = Any
Time = Int[Array, " b"] | Float[Array, " b"]


def kernel_init(scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Uniform with variance scale / mean(fan_in, fan_out); 0 means 1e-10, as in DDPM's code."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def dense(features: int, name: str, dtype: Dtype, scale: float = 1.0) -> nn.Dense:
    """A linear map of the last axis, which is also the 1x1 convolution of an image."""
    return nn.Dense(features, kernel_init=kernel_init(scale), dtype=dtype, name=name)


def attention(
    q: Float[Array, "b heads n c"],
    k: Float[Array, "b heads m c"],
    v: Float[Array, "b heads m c"],
    mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b heads n c"]:
    """softmax(q k^T / sqrt(c)) v of every head, with float32 logits whatever the dtype.

    Where a mask is given, only those of the m that it marks count; of each example one at least.
    """
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
    return jnp.einsum("bhqk,bhkc->bhqc", weights, v)


def timestep_embedding(
    t: Time, channels: int, flip_sin_to_cos: bool = False, freq_shift: int = 1
) -> Float[Array, "b c"]:
    """[sin(t f_i), cos(t f_i)] with f_i = exp(-ln 10000 * i / (half - freq_shift)).

    Transformer positions, as DDPM's code has them.

    Args:
        t: i32[B], the timesteps that the network is told; f32[B] between them.
        channels: width of the result, at least 4; an odd width gets one zero column.
        flip_sin_to_cos: cosines first.
        freq_shift: below half of the channels; 1 ends the frequencies at 1/10000.
    """
    half = channels // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


def fourier_features(
    x: Float[Array, "b h w c"], exponents: tuple[int, ...]
) -> Float[Array, "b h w d"]:
    """x and behind it sin(2^n pi x) and cos(2^n pi x) of every channel, for each n (VDM App. C).

    Of period 2^(1 - n): they show differences far smaller than the image to a first layer that
    else would need large weights for them. K levels lie 2 / (K - 1) apart in [-1, 1]. With
    2^n = (K - 1) / 2 neighbouring levels have opposite cosines, and with n + 1 the period is one
    level, so that the features show how far a value is from the nearest; a finer one would not
    tell noise of one level from none. For 256 levels these are 7 and 8, VDM's, for 17 they are
    3 and 4.

    Args:
        exponents: n; () gives x.
    """
    angles = [2.0**n * np.pi * x for n in exponents]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1) if waves else x


class TimeEmbedding(nn.Module):
    """`timestep_embedding` through two dense layers of width `features`, in float32."""

    channels: int
    features: int
    flip_sin_to_cos: bool = False
    freq_shift: int = 1

    @nn.compact
    def __call__(self, t: Time) -> jax.Array:
        temb = timestep_embedding(t, self.channels, self.flip_sin_to_cos, self.freq_shift)
        temb = nn.swish(dense(self.features, "dense0", jnp.float32)(temb))
        return dense(self.features, "dense1", jnp.float32)(temb)


class ClassEmbedding(nn.Module):
    """A row for every label and a last one for the null class, which means "no label".

    The null class is what training replaces a label by with probability `label_dropout`
    (Ho and Salimans 2022, Algorithm 1); its row exists, but learns nothing, where that is 0.
    """

    num_classes: int
    features: int
    label_dropout: float

    @nn.compact
    def __call__(
        self, labels: Int[Array, " b"] | None, batch_size: int, train: bool
    ) -> Float[Array, "b c"]:
        """The rows of the labels, float32.

        Args:
            labels: i32[B] in [0, num_classes), or num_classes, the null class, where label_dropout
                is above 0; None is the null class for all. A label out of range gives NaN.
            batch_size: B.
            train: drop labels, with the rng stream "dropout".
        """
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        table = self.param("embedding", init, (self.num_classes + 1, self.features))
        if labels is None:
            labels = jnp.full(batch_size, self.num_classes)
        labels = jnp.where(labels < 0, len(table), labels)  # -1 would be the last row
        if train and self.label_dropout:
            drop = jax.random.bernoulli(self.make_rng("dropout"), self.label_dropout, (batch_size,))
            labels = jnp.where(drop, self.num_classes, labels)
        return jnp.take(table, labels, axis=0, mode="fill")


def _native(x: jax.Array, w: jax.Array, strides: tuple[int, ...], padding: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x: Float[Array, "b h w i"],
    w: Float[Array, "kh kw i o"],
    strides: tuple[int, ...],
    padding: Pads,
) -> Float[Array, "b hh ww o"]:
    """Cross-correlation of x, padded by (before, after) of each spatial axis, with w."""
    return _native(x, w, strides, padding)


def _forward(x: jax.Array, w: jax.Array, strides: tuple[int, ...], padding: Pads) -> Any:
    return _native(x, w, strides, padding), (x, w)


def _cpu_gradients(
    x: jax.Array, w: jax.Array, dy: jax.Array, strides: tuple[int, ...], padding: Pads
) -> tuple[jax.Array, jax.Array]:
    """dx: dy, spread by the stride, with the turned kernel; dw: x with dy as its kernel."""
    dx_padding, dw_padding = [], []
    for axis in range(2):
        size, kernel, before = x.shape[1 + axis], w.shape[axis], padding[axis][0]
        spread = strides[axis] * (dy.shape[1 + axis] - 1) + 1
        first = kernel - 1 - before
        dx_padding.append((first, size + kernel - 1 - spread - first))
        dw_padding.append((before, kernel - 1 + spread - size - before))
    dx = jax.lax.conv_general_dilated(
        dy,
        w[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        dx_padding,
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    dw = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        dw_padding,
        rhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    return dx, dw.transpose(1, 2, 0, 3)


def _backward(
    strides: tuple[int, ...], padding: Pads, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def native(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, w: _native(x, w, strides, padding), x, w)[1](dy)

    cpu = functools.partial(_cpu_gradients, strides=strides, padding=padding)
    return jax.lax.platform_dependent(*saved, dy, cpu=cpu, default=native)


conv.defvjp(_forward, _backward)


def conv_general_dilated(
    x: jax.Array,
    w: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    lhs_dilation: Any = (1, 1),
    rhs_dilation: Any = (1, 1),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`conv` under the name and arguments that `flax.linen.Conv` calls, which are NHWC.

    Args:
        padding: "SAME", "VALID" or explicit pairs.

    Raises:
        ValueError: for dilation, groups or a precision, which `conv` does not have.
    """
    del dimension_numbers  # Linen's are always those of LAYOUT
    plain = tuple(lhs_dilation) == tuple(rhs_dilation) == (1, 1)
    if not plain or feature_group_count != 1 or precision is not None:
        raise ValueError("this convolution has no dilation, no groups and no precision of its own.")
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], window_strides, padding)
    return conv(x, w, tuple(window_strides), tuple(map(tuple, padding)))
