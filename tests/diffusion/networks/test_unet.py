import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import timestep_embedding
from diffusion.networks.unet import Settings, UNet, group_norm
from tests.diffusion.networks.small import applied, shaken, shapes

TINY = dict(channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,))
ONE_LEVEL = dict(
    **dict(channels=8, channel_multipliers=(1,), num_blocks=1, attention_resolutions=()),
    norm_groups=4,
)


def pictures() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (2, 8, 8, 1))


@pytest.mark.parametrize(
    ("unet", "shape", "count"),
    [
        (UNet(3), (32, 32, 3), 35_746_307),
        (UNet(6), (32, 32, 3), 35_749_766),
        (UNet(3, channel_multipliers=(1, 1, 2, 2, 4, 4)), (256, 256, 3), 113_673_219),
        (UNet(3, channels=192, channel_multipliers=(1, 1, 2, 2, 4, 4)), (256, 256, 3), 255_677_955),
    ],
)
def test_published_parameter_counts(unet: UNet, shape: tuple, count: int) -> None:
    params = shapes(unet, shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_modules_have_the_originals_names() -> None:
    params = shapes(UNet(3, **TINY), (8, 8, 3))["params"]
    assert sorted(params) == [
        *("conv_in", "conv_out", "down_0", "down_1", "mid", "norm_out", "temb", "up_0", "up_1")
    ]
    assert sorted(params["temb"]) == ["dense0", "dense1"]
    assert sorted(params["mid"]) == ["attn_1", "block_1", "block_2"]
    assert sorted(params["down_0"]) == ["block_0", "downsample"]
    assert sorted(params["down_1"]) == ["attn_0", "block_0"]
    assert sorted(params["up_1"]) == ["attn_0", "attn_1", "block_0", "block_1", "upsample"]
    names = ["conv1", "conv2", "nin_shortcut", "norm1", "norm2", "temb_proj"]
    assert sorted(params["down_1"]["block_0"]) == names
    assert sorted(params["mid"]["attn_1"]) == ["k", "norm", "proj_out", "q", "v"]
    assert sorted(params["up_1"]["upsample"]) == sorted(params["down_0"]["downsample"]) == ["conv"]


def test_the_untrained_network_returns_almost_zero() -> None:
    """conv_out starts at a scale of 1e-10, like every layer that closes a residual."""
    unet = UNet(1, **ONE_LEVEL | dict(channels=32))
    params = jax.jit(unet.init)(jax.random.key(0), pictures(), jnp.zeros(2, jnp.int32))
    output = applied(unet)(params, pictures(), jnp.array([3, 900]))
    assert float(jnp.abs(output).max()) < 1e-3
    kernel = params["params"]["conv_in"]["kernel"]
    bound = np.sqrt(3 / (9 * (1 + 32) / 2))  # uniform, variance 1 / mean(fan_in, fan_out)
    assert 0.9 * bound < float(jnp.abs(kernel).max()) <= bound
    for block in ("block_1", "block_2"):
        closing = params["params"]["mid"][block]["conv2"]["kernel"]
        assert 0 < float(jnp.abs(closing).max()) < 1e-5
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(params) if "bias" in str(path[-1])]
    assert all((bias == 0).all() for bias in biases)


def test_the_timestep_embedding_is_sin_then_cos() -> None:
    t = jnp.array([0, 1, 500])
    embedding = timestep_embedding(t, 7)
    frequencies = 10000.0 ** (-np.arange(3) / 2)
    angles = np.outer(t, frequencies)
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(embedding, expected, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 4, "norm_groups": 8, "num_classes": 10, "remat": True},
        {"channel_multipliers": (1, 1), "attention_resolutions": (8,), "norm_groups": 16},
    ],
)
def test_every_option_runs_forward_and_back(change: dict) -> None:
    unet = UNet(1, **(TINY | change))

    def loss(params) -> jax.Array:
        return jnp.mean(jnp.square(unet.apply(params, pictures(), jnp.array([0, 999]))))

    value, gradient = jax.jit(jax.value_and_grad(loss))(shaken(unet))
    assert np.isfinite(value)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(jax.device_get(gradient))
        if not (np.isfinite(leaf).all() and (leaf != 0).any())
    ]
    # The bias of the keys shifts all scores of a query alike, which softmax does not see.
    assert not [name for name in dead if "'k'" not in name]


def test_rematerialisation_and_bfloat16_change_rounding_only() -> None:
    plain, again, half = (
        UNet(1, **ONE_LEVEL, **change) for change in ({}, {"remat": True}, {"dtype": jnp.bfloat16})
    )
    params, t = shaken(plain), jnp.array([0, 999])
    expected, same, result = (applied(u)(params, pictures(), t) for u in (plain, again, half))
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert result.dtype == jnp.float32
    assert float(jnp.abs(result - expected).max()) < 0.1 * float(jnp.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype(jnp.float32)}


def test_a_norm_of_values_far_from_zero_keeps_its_digits() -> None:
    """E[x^2] - E[x]^2 in float32 gives 8 in place of 1 here."""
    norm = group_norm("norm", Settings(0.0, 1, 32, False, jnp.float32))
    x = 100 + 0.01 * jax.random.normal(jax.random.key(1), (1, 8, 8, 32))
    result = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x))
    exact = np.asarray(x, np.float64)
    deviation = np.sqrt(exact.var(axis=(1, 2), keepdims=True) + 1e-6)
    exact = (exact - exact.mean(axis=(1, 2), keepdims=True)) / deviation
    np.testing.assert_allclose(result, exact, atol=5e-3)


def test_dropout_is_for_training_and_by_key() -> None:
    unet = UNet(1, **ONE_LEVEL, dropout=0.5)
    params, t = shaken(unet), jnp.array([5, 5])

    def run(**how) -> jax.Array:
        return applied(unet)(params, pictures(), t, **how)

    one, again, other = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-3
    plain = applied(UNet(1, **ONE_LEVEL))(params, pictures(), t)
    np.testing.assert_array_equal(run(train=False), plain)


def test_labels_matter_and_none_is_the_null_class() -> None:
    unet = UNet(1, **ONE_LEVEL, num_classes=10, label_dropout=0.1)
    params, x, t = shaken(unet), jnp.zeros((2, 8, 8, 1)), jnp.array([5, 5])
    out = applied(unet)(params, x, t, jnp.array([3, 4]))
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-4
    null = applied(unet)(params, x, t, jnp.array([10, 10]))
    np.testing.assert_array_equal(applied(unet)(params, x, t), null)
    plain = UNet(1, **ONE_LEVEL)
    with pytest.raises(ValueError, match="labels were given to a network without num_classes"):
        jax.eval_shape(plain.apply, shapes(plain), x, t, jnp.array([3, 4]))


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    unet = UNet(1, **ONE_LEVEL)
    x, t = pictures(), jnp.array([300, 900])
    together = applied(unet)(shaken(unet), x, t)
    beside = applied(unet)(shaken(unet), x.at[1].mul(-3.0), t.at[1].set(5))
    np.testing.assert_allclose(beside[0], together[0], atol=1e-5)
    assert float(jnp.abs(beside[1] - together[1]).max()) > 1e-3


@pytest.mark.parametrize(
    ("change", "shape", "words"),
    [
        (
            {"channel_multipliers": (1, 1, 1, 1)},
            (30, 30, 3),
            ["30x30", "halved 3 times", "multiples of 8", "fewer levels"],
        ),
        ({"attention_resolutions": (16,)}, (8, 8, 1), ["names 16", "[8, 4]"]),
        ({"channels": 48}, (8, 8, 1), ["48 channels", "norm_groups = 32"]),
        ({"num_heads": 5}, (8, 8, 1), ["num_heads = 5"]),
    ],
)
def test_impossible_networks_say_what_to_change(change: dict, shape: tuple, words: list) -> None:
    unet = UNet(1, **(TINY | change))
    for attempt in (lambda: unet.check(shape), lambda: shapes(unet, shape)):
        with pytest.raises(ValueError) as error:
            attempt()
        assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("shape", [(8, 12, 1), (12, 6, 3)])
def test_any_size_that_can_be_halved_works(shape: tuple) -> None:
    unet = UNet(2, **(TINY | {"attention_resolutions": ()}))
    x = jnp.zeros((2, *shape))
    out = jax.eval_shape(unet.apply, shapes(unet, shape), x, jnp.zeros(2, jnp.int32))
    assert out.shape == (2, *shape[:2], 2)
