"""The networks of a VAE: shapes, dropout, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import AUTOENCODERS

CONV = dict(channels=8, channel_multipliers=(1, 2), norm_groups=4, attention_resolutions=(4,))


@pytest.mark.parametrize(
    ("name", "options", "latent"),
    [
        ("conv_vae", CONV | dict(latent_channels=3), (4, 6, 3)),
        ("mlp_vae", dict(hidden_sizes=(16, 12), latent_size=5), (5,)),
    ],
)
@pytest.mark.parametrize("outputs", [2, 4])
def test_an_image_and_its_latents_have_the_shapes_that_they_say(
    name, options, latent, outputs, key
) -> None:
    network, shape = AUTOENCODERS[name](out_channels=outputs, **options), (8, 12, 2)
    network.check(shape)
    assert network.latent_shape(shape) == latent
    x = jax.random.normal(key, (3, *shape))
    params = network.init(key, x)
    q = network.apply(params, x, method="encode")
    assert q.mean.shape == q.log_variance.shape == (3, *latent)
    decoded = network.apply(params, q.mean, shape, method="decode")
    assert decoded.shape == (3, 8, 12, outputs)
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize(("name", "options"), [("conv_vae", CONV), ("mlp_vae", {})])
def test_dropout_is_of_training_only(name, options, key) -> None:
    network = AUTOENCODERS[name](out_channels=1, dropout=0.5, **options)
    x = jax.random.normal(key, (2, 8, 8, 1))
    params = jax.tree.map(lambda p: p + 0.1, network.init(key, x))

    def encode(**how):
        return network.apply(params, x, method="encode", **how).mean

    np.testing.assert_array_equal(encode(), encode())
    one, other = (encode(train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert np.abs(one - other).max() > 1e-4


def test_examples_do_not_meet(key) -> None:
    network = AUTOENCODERS["conv_vae"](out_channels=1, **CONV)
    x = jax.random.normal(key, (3, 8, 8, 1))
    params = network.init(key, x)
    np.testing.assert_allclose(
        network.apply(params, x)[1:2], network.apply(params, x[1:2]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(channel_multipliers=(1, 2, 2, 2)), "cannot be halved 3 times"),
        (dict(attention_resolutions=(3,)), "attention_resolutions names 3"),
        (dict(norm_groups=3, attention_resolutions=()), "norm_groups = 3"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, words: str) -> None:
    network = AUTOENCODERS["conv_vae"](out_channels=1, **CONV | change)
    with pytest.raises(ValueError, match=words):
        network.check((12, 12, 1))


def test_log_variances_stay_where_float32_can_tell(key) -> None:
    network = AUTOENCODERS["mlp_vae"](out_channels=1, hidden_sizes=(4,), latent_size=2)
    x = jnp.full((1, 2, 2, 1), 1e6)
    q = network.apply(network.init(key, x), x, method="encode")
    assert (q.log_variance >= -30).all() and (q.log_variance <= 20).all()
