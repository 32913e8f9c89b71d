"""The networks of a VAE: shapes, dropout, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import AUTOENCODERS
from tests.diffusion.networks.small import filled, small

CONV = dict(channel_multipliers=(1, 2), attention_resolutions=(4,))
LATENTS = {"conv_vae": (4, 6, 3), "mlp_vae": (5,)}  # of an image of 8x12


def with_params(name: str, shape: tuple[int, ...], **fields):
    """A network, parameters of which none is zero, and its `encode` and `decode`, compiled."""
    network = small(AUTOENCODERS[name], CONV, **fields)
    params = filled(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape))))

    @functools.partial(jax.jit, static_argnames="train")
    def encode(x, **how):
        return network.apply(params, x, method="encode", **how)

    return network, encode, jax.jit(lambda z: network.apply(params, z, shape, method="decode"))


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("outputs", [2, 4])
def test_an_image_and_its_latents_have_the_shapes_that_they_say(name, outputs, key) -> None:
    shape = (8, 12, 2)
    network, encode, decode = with_params(name, shape, out_channels=outputs)
    network.check(shape)
    latent = network.latent_shape(shape)
    assert latent == LATENTS.get(name, latent)
    q = jax.eval_shape(encode, jax.random.normal(key, (3, *shape)))
    assert q.mean.shape == q.log_variance.shape == (3, *latent)
    decoded = jax.eval_shape(decode, q.mean)
    assert decoded.shape == (3, 8, 12, outputs) and decoded.dtype == jnp.float32


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_dropout_is_of_training_only(name, key) -> None:
    _, encode, _ = with_params(name, (8, 8, 1), out_channels=1, dropout=0.5)
    _, plain, _ = with_params(name, (8, 8, 1), out_channels=1)
    x = jax.random.normal(key, (2, 8, 8, 1))
    np.testing.assert_array_equal(encode(x).mean, plain(x).mean)
    one, other = (encode(x, train=True, rngs={"dropout": jax.random.key(i)}).mean for i in (1, 2))
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_examples_do_not_meet(name, key) -> None:
    _, encode, decode = with_params(name, (8, 8, 1), out_channels=1)
    x = jax.random.normal(key, (2, 8, 8, 1))
    z = encode(x).mean
    for run, batch in ((lambda x: encode(x).mean, x), (decode, z)):
        beside = run(batch.at[1].mul(-3.0))
        np.testing.assert_allclose(beside[0], run(batch)[0], atol=1e-5)
        assert np.isfinite(beside).all() and np.abs(beside[1] - run(batch)[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(channel_multipliers=(1, 2, 2, 2)), "cannot be halved 3 times"),
        (dict(attention_resolutions=(3,)), "attention_resolutions names 3"),
        (dict(norm_groups=3, attention_resolutions=()), "norm_groups = 3"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, words: str) -> None:
    network = small(AUTOENCODERS["conv_vae"], CONV | change, out_channels=1)
    with pytest.raises(ValueError, match=words):
        network.check((12, 12, 1))


def test_log_variances_stay_where_float32_can_tell() -> None:
    _, encode, _ = with_params("mlp_vae", (2, 2, 1), out_channels=1)
    q = encode(jnp.full((1, 2, 2, 1), 1e6))
    assert (q.log_variance >= -30).all() and (q.log_variance <= 20).all()
