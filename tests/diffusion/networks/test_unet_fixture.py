"""The U-Net against numbers that diffusers' UNet2DModel computed, without needing diffusers."""

import jax
import numpy as np

from tests.fixtures.make_unet_diffusers import IMAGE_SHAPE, MODEL, PATH, param_shapes, random_params


def test_unet_repeats_the_output_of_diffusers():
    params = random_params(param_shapes(MODEL, IMAGE_SHAPE))
    with np.load(PATH, allow_pickle=False) as stored:
        x, t, expected = stored["x"], stored["t"], stored["output"]
    assert 0.3 < expected.std() < 3.0
    with jax.default_matmul_precision("highest"):
        output = jax.jit(MODEL.apply)({"params": params}, x, t)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
