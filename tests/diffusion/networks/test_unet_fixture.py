"""The U-Net against numbers that diffusers' UNet2DModel computed, without needing diffusers."""

import jax
import numpy as np
import pytest

from diffusion.networks.unet import UNet
from tests.fixtures.make_unet_diffusers import (
    DEFAULT,
    IMAGE_SHAPE,
    MODEL,
    PATH,
    param_shapes,
    random_params,
)


@pytest.mark.parametrize(("name", "model"), [("output", MODEL), ("default", DEFAULT)])
def test_unet_repeats_the_output_of_diffusers(name: str, model: UNet) -> None:
    params = random_params(param_shapes(model, IMAGE_SHAPE))
    with np.load(PATH, allow_pickle=False) as stored:
        x, t, expected = stored["x"], stored["t"], stored[name]
    assert 0.3 < expected.std() < 3.0
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.apply)({"params": params}, x, t)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
