import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import timestep_embedding
from diffusion.networks.unet import Settings, UNet, group_norm

TINY = dict(channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,))


def init(unet: UNet, shape=(8, 8, 1)):
    image, t = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    return jax.jit(unet.init)(jax.random.key(0), image, t)


def shake(params, scale: float = 0.1):
    """Parameters none of which is zero, so that every path of the network shows in its output."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    shaken = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, shaken)


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
    params = jax.eval_shape(
        unet.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_modules_have_the_originals_names() -> None:
    params = jax.eval_shape(lambda: init(UNet(3, **TINY), (8, 8, 3)))["params"]
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
    unet = UNet(1, **TINY)
    params = init(unet)
    x = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))
    assert float(jnp.abs(unet.apply(params, x, jnp.array([3, 900]))).max()) < 1e-3
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
        {},
        {"num_heads": 4},
        {"remat": True},
        {"channel_multipliers": (1, 1, 1), "attention_resolutions": (8, 2)},
        {"attention_resolutions": ()},
        {"num_classes": 10},
        {"norm_groups": 8},
    ],
)
def test_every_option_runs_forward_and_back(change: dict) -> None:
    unet = UNet(1, **(TINY | change))
    params = shake(init(unet))
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([0, 999])

    def loss(params) -> jax.Array:
        return jnp.mean(jnp.square(unet.apply(params, x, t)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(gradient)
        if not (jnp.isfinite(leaf).all() and (leaf != 0).any())
    ]
    # The bias of the keys shifts all scores of a query alike, which softmax does not see.
    assert not [name for name in dead if "'k'" not in name]


def test_rematerialisation_and_bfloat16_change_rounding_only() -> None:
    plain = UNet(1, **TINY)
    params = shake(init(plain))
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([0, 999])
    expected = plain.apply(params, x, t)
    np.testing.assert_allclose(UNet(1, **TINY, remat=True).apply(params, x, t), expected, atol=1e-5)
    half = UNet(1, **TINY, dtype=jnp.bfloat16)
    result = half.apply(params, x, t)
    assert result.dtype == jnp.float32
    assert float(jnp.abs(result - expected).max()) < 0.1 * float(jnp.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(init(half))} == {jnp.dtype(jnp.float32)}


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
    unet = UNet(1, **TINY, dropout=0.5)
    params = shake(init(unet))
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([5, 5])

    def run(seed: int) -> jax.Array:
        return unet.apply(params, x, t, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(0), run(0))
    assert float(jnp.abs(run(0) - run(1)).max()) > 1e-3
    np.testing.assert_array_equal(unet.apply(params, x, t), unet.apply(params, x, t))


def test_labels_matter_and_none_is_the_null_class() -> None:
    unet = UNet(1, **TINY, num_classes=10, label_dropout=0.1)
    params = shake(init(unet))
    x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([5, 5])
    out = unet.apply(params, x, t, jnp.array([3, 4]))
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-4
    null = unet.apply(params, x, t, jnp.array([10, 10]))
    np.testing.assert_array_equal(unet.apply(params, x, t), null)
    plain = UNet(1, **TINY)
    with pytest.raises(ValueError, match="labels were given to a network without num_classes"):
        plain.apply(init(plain), x, t, jnp.array([3, 4]))


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    unet = UNet(1, **TINY)
    params = shake(init(unet))
    x, t = jax.random.normal(jax.random.key(2), (4, 8, 8, 1)), jnp.arange(4) * 300
    together = unet.apply(params, x, t)
    np.testing.assert_allclose(unet.apply(params, x[2:3], t[2:3]), together[2:3], atol=1e-5)


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
    for attempt in (lambda: unet.check(shape), lambda: jax.eval_shape(lambda: init(unet, shape))):
        with pytest.raises(ValueError) as error:
            attempt()
        assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("shape", [(8, 12, 1), (12, 6, 3)])
def test_any_size_that_can_be_halved_works(shape: tuple) -> None:
    unet = UNet(2, **(TINY | {"attention_resolutions": ()}))
    x = jnp.zeros((2, *shape))
    out = jax.eval_shape(unet.apply, init(unet, shape), x, jnp.zeros(2, jnp.int32))
    assert out.shape == (2, *shape[:2], 2)
