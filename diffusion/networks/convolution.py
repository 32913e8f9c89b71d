"""A convolution whose gradients XLA compiles well inside loops on CPU.

XLA:CPU brings a convolution into the one layout that its fast kernels know only outside of loops;
in a `lax.scan` the gradient of the weights then runs some 25 times slower. Here both gradients are
written as convolutions of that layout. Other platforms keep their own gradients.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], ...]


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
