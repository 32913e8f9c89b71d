import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (4, 6)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (2, 0))])
def test_gradients_are_those_of_jax(stride: int, size: tuple, padding) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *size, 4))
    w = jax.random.normal(keys[1], (3, 3, 4, 5))

    def ours(x, w):
        return conv_general_dilated(x, w, (stride, stride), padding)

    def native(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=LAYOUT
        )

    y, pull = jax.vjp(ours, x, w)
    expected, pull_native = jax.vjp(native, x, w)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    dy = jax.random.normal(keys[2], y.shape)
    for ours_, native_ in zip(pull(dy), pull_native(dy), strict=True):
        np.testing.assert_allclose(ours_, native_, atol=1e-4)


def test_inside_a_loop_the_weight_gradient_has_the_fast_layout() -> None:
    """The reason for the module: XLA:CPU's fast kernels take b01f_01io->b01f only."""

    def step(w, x):
        gradient = jax.grad(lambda w: conv_general_dilated(x, w, (1, 1), "SAME").sum() ** 2)(w)
        return w - gradient, None

    run = jax.jit(lambda w, xs: jax.lax.scan(step, w, xs)[0])
    lowered = run.lower(jnp.ones((3, 3, 4, 4)), jnp.ones((2, 2, 8, 8, 4)))
    lines = [line for line in lowered.compile().as_text().splitlines() if " convolution(" in line]
    if jax.default_backend() != "cpu":
        pytest.skip("other backends choose their own layouts")
    assert len(lines) >= 2 and all("b01f_01io->b01f" in line for line in lines)
