"""The U-Net and diffusers' UNet2DModel are the same function of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with diffusers needs the parity extra")
pytest.importorskip("diffusers", reason="comparing with diffusers needs the parity extra")

from diffusion.networks.layers import timestep_embedding  # noqa: E402
from diffusion.networks.unet import UNet  # noqa: E402
from tests.fixtures.make_unet_diffusers import param_shapes, random_params  # noqa: E402
from tests.parity import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

# An angle of the timestep embedding has float32's rounding of t radians, 6e-5 at t = 1000 whatever
# the library: large timesteps are compared in `test_timestep_embedding_equals_diffusers`.
TIMESTEPS = (3, 400)
SMALL = dict(out_channels=3, channels=32, norm_groups=8)
TOPOLOGIES = {
    "cifar10": (32, 3, dict(SMALL)),
    "two attention levels": (16, 3, dict(SMALL, attention_resolutions=(16, 8))),
    "digits": (
        8,
        1,
        dict(
            out_channels=1,
            channels=32,
            channel_multipliers=(1, 2, 2),
            attention_resolutions=(4,),
        ),
    ),
    "no attention but in the middle": (
        16,
        3,
        dict(SMALL, channel_multipliers=(1, 2), attention_resolutions=()),
    ),
    "one level, one block": (
        8,
        3,
        dict(SMALL, channel_multipliers=(1,), num_blocks=1, attention_resolutions=(8,)),
    ),
    "diffusers' own defaults": (
        16,
        3,
        dict(
            **SMALL,
            channel_multipliers=(1, 2),
            attention_resolutions=(8,),
            **dict(attention_head_dim=8, flip_sin_to_cos=True, freq_shift=0),
            **dict(downsample_padding=1, norm_eps=1e-5),
        ),
    ),
    "three blocks, twice the outputs": (
        8,
        3,
        dict(
            SMALL,
            out_channels=6,
            channel_multipliers=(1, 3),
            num_blocks=3,
            attention_resolutions=(8, 4),
        ),
    ),
}


def compare(model: UNet, image_shape: tuple[int, int, int]) -> None:
    params = random_params(param_shapes(model, image_shape))
    theirs = pipelines.unet(model, image_shape)
    pipelines.load(theirs, params, len(model.channel_multipliers))
    theirs.double()  # so that the difference is our rounding only

    draw = np.random.Generator(np.random.PCG64(0))
    x = draw.standard_normal((len(TIMESTEPS), *image_shape)).astype(np.float32)
    t = np.array(TIMESTEPS, np.int32)
    with torch.no_grad():
        images = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        expected = theirs(images, torch.from_numpy(t)).sample.permute(0, 2, 3, 1).numpy()
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.apply)({"params": params}, x, t)
    assert 0.3 < expected.std() < 3.0
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_unet_equals_diffusers(name: str):
    size, image_channels, fields = TOPOLOGIES[name]
    compare(UNet(**fields), (size, size, image_channels))


def test_unet_of_the_cifar10_model_equals_diffusers():
    compare(UNet(out_channels=3), (32, 32, 3))


@pytest.mark.parametrize("how", [(False, 1), (True, 0)])
@pytest.mark.parametrize("channels", [32, 128, 33])
def test_timestep_embedding_equals_diffusers(channels: int, how: tuple[bool, int]):
    from diffusers.models.embeddings import get_timestep_embedding

    expected = get_timestep_embedding(torch.arange(1000), channels, *how)
    actual = timestep_embedding(jnp.arange(1000), channels, *how)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
