"""The laws of the DiT: what is zero, what commutes, what the output depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.dit import DiT, patchify, position_embedding, unpatchify
from tests.diffusion.networks.small import applied, shaken, shapes

TINY = dict(patch_size=2, hidden_size=16, depth=2, num_heads=4)


def init(dit: DiT):
    return jax.jit(dit.init)(jax.random.key(0), images(count=1), jnp.zeros(1, jnp.int32))


def images(shape: tuple = (8, 8, 1), count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (count, *shape))


# --- Patches and their places ---


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 3), 2), ((8, 8, 1), 1), ((9, 3, 2), 3)])
def test_patches_are_cut_row_by_row_and_put_back(shape: tuple, patch: int) -> None:
    x = images(shape)
    tokens = patchify(x, patch)
    columns = shape[1] // patch
    assert tokens.shape == (2, x[0].size // (patch * patch * shape[2]), patch * patch * shape[2])
    for n in range(tokens.shape[1]):
        i, j = n // columns * patch, n % columns * patch
        np.testing.assert_array_equal(
            tokens[:, n], x[:, i : i + patch, j : j + patch].reshape(2, -1)
        )
    np.testing.assert_array_equal(unpatchify(tokens, patch, *shape[:2]), x)


@pytest.mark.parametrize(("rows", "columns", "channels"), [(2, 3, 8), (4, 4, 16), (1, 1, 4)])
def test_the_position_embedding_is_the_formula(rows: int, columns: int, channels: int) -> None:
    found = position_embedding(rows, columns, channels)
    assert found.dtype == np.float64 and found.shape == (rows * columns, channels)
    quarter = channels // 4
    for n in range(rows * columns):
        for c in range(channels):
            place = n % columns if c < channels // 2 else n // columns
            wave = np.sin if c % (2 * quarter) < quarter else np.cos
            expected = wave(place / 10000 ** (c % quarter / quarter))
            assert abs(found[n, c] - expected) < 1e-14


def test_places_are_told_apart_by_their_distance_alone() -> None:
    """sin^2 + cos^2 = 1, and the product of two rows is a sum of cosines of their differences."""
    rows, columns, channels = 5, 7, 32
    embedding = position_embedding(rows, columns, channels)
    row, column = np.divmod(np.arange(rows * columns), columns)
    frequencies = 10000.0 ** (-np.arange(channels // 4) / (channels // 4))
    expected = sum(
        np.cos(np.subtract.outer(place, place)[..., None] * frequencies).sum(-1)
        for place in (row, column)
    )
    np.testing.assert_allclose(embedding @ embedding.T, expected, atol=1e-12)
    np.testing.assert_allclose((embedding**2).sum(1), channels / 2, atol=1e-12)
    distances = np.linalg.norm(embedding[:, None] - embedding[None], axis=-1)
    assert distances[~np.eye(rows * columns, dtype=bool)].min() > 0.5


# --- Zero at first ---


@pytest.mark.parametrize("num_classes", [None, 10])
def test_the_untrained_network_is_zero_and_its_blocks_are_the_identity(num_classes) -> None:
    dit = DiT(2, **TINY, num_classes=num_classes)
    params, t = init(dit), jnp.array([3, 900])
    output, found = jax.jit(dit.apply, static_argnames=("capture_intermediates", "mutable"))(
        params, images(), t, capture_intermediates=True, mutable="intermediates"
    )
    found = {
        name: content["__call__"][0]
        for name, content in found["intermediates"].items()
        if isinstance(content, dict) and name != "temb" and "__call__" in content
    }
    np.testing.assert_array_equal(found["block_0"], found["block_1"])
    assert float(jnp.abs(found["block_0"]).max()) > 0.5
    np.testing.assert_array_equal(output, 0.0)


def test_the_zeros_are_exact_and_the_rest_is_xavier() -> None:
    params = jax.device_get(init(DiT(2, **TINY))["params"])
    zero = {"modulation", "modulation_out", "patch_out"}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = {part.key for part in path}
        if names & zero or "bias" in names:
            assert (leaf == 0).all(), path
        else:
            bound = np.sqrt(6 / sum(leaf.shape))
            assert 0.8 * bound < np.abs(leaf).max() <= bound, path


def test_every_parameter_learns_once_the_gates_are_open() -> None:
    dit = DiT(2, **TINY, num_classes=3)
    t, labels = jnp.array([0, 999, 5, 5]), jnp.arange(4) % 3

    def loss(params) -> jax.Array:
        return jnp.mean(jnp.square(dit.apply(params, images(count=4), t, labels)))

    gradient = jax.device_get(jax.jit(jax.grad(loss))(shaken(dit)))["params"]
    for name, block in gradient.items():  # each shift, scale and gate by itself
        if name.startswith("block"):
            block["modulation"] = [np.split(x, 6, -1) for x in block["modulation"].values()]
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(gradient)
        if not (np.isfinite(leaf).all() and (leaf != 0).any())
    ]
    # The bias of the keys shifts all scores of a query alike, which softmax does not see.
    assert not [name for name in dead if "'k'" not in name]


# --- Parameters ---


def formula(out: int, inputs: int, patch: int, width: int, depth: int, ratio: int) -> int:
    """Weights and biases, layer by layer."""

    def linear(a: int, b: int) -> int:
        return a * b + b

    block = linear(width, 6 * width) + 4 * linear(width, width)
    block += linear(width, ratio * width) + linear(ratio * width, width)
    ends = linear(patch**2 * inputs, width) + linear(width, patch**2 * out)
    time = linear(256, width) + linear(width, width)
    return ends + time + linear(width, 2 * width) + depth * block


@pytest.mark.parametrize(
    ("out", "shape", "fields"),
    [
        (2, (8, 8, 1), dict(patch_size=1, hidden_size=64, depth=4, num_heads=4)),
        (3, (32, 32, 3), dict(patch_size=2, hidden_size=384, depth=12, num_heads=6)),
        (3, (8, 8, 3), dict(patch_size=4, hidden_size=16, depth=1, num_heads=2, mlp_ratio=2.0)),
    ],
)
def test_the_number_of_parameters(out: int, shape: tuple, fields: dict) -> None:
    params = shapes(DiT(out, **fields), shape)
    ratio = int(fields.get("mlp_ratio", 4))
    sizes = [fields[name] for name in ("patch_size", "hidden_size", "depth")]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == formula(out, shape[-1], *sizes, ratio)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_the_papers_xl_has_its_675_million_parameters() -> None:
    """Table 4: DiT-XL/2 on latents of 32x32x4, with a learned variance and 1000 classes."""
    dit = DiT(8, patch_size=2, hidden_size=1152, depth=28, num_heads=16, num_classes=1000)
    params = shapes(dit, (32, 32, 4))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == 675


# --- What the output depends on ---


@pytest.mark.parametrize("places", [False, True])
def test_tokens_are_told_apart_by_their_places_alone(places: bool, monkeypatch) -> None:
    """Without the position embedding, permuted patches give permuted outputs."""
    if not places:
        monkeypatch.setattr(
            "diffusion.networks.dit.position_embedding",
            lambda rows, columns, channels: np.zeros((rows * columns, channels)),
        )
    dit = DiT(1, **TINY)
    apply, t = jax.jit(lambda x: dit.apply(shaken(dit), x, t)), jnp.array([3, 900])
    order = np.random.default_rng(0).permutation(16)

    def permuted(x: jax.Array) -> jax.Array:
        return unpatchify(patchify(x, 2)[:, order], 2, 8, 8)

    outside, inside = permuted(apply(images())), apply(permuted(images()))
    gap = float(jnp.abs(outside - inside).max()) / float(jnp.abs(outside).max())
    assert gap > 0.05 if places else gap < 1e-5


def test_timestep_and_label_matter() -> None:
    dit = DiT(1, **TINY, num_classes=10, label_dropout=0.1)
    params, x = shaken(dit), jnp.zeros((2, 8, 8, 1))
    for t, labels in (([5, 6], [3, 3]), ([5, 5], [3, 4]), ([5, 5], [3, 10])):
        out = applied(dit)(params, x, jnp.array(t), jnp.array(labels))
        assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3, (t, labels)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    dit = DiT(1, **TINY)
    x, t = images(), jnp.array([300, 900])
    together = applied(dit)(shaken(dit), x, t)
    beside = applied(dit)(shaken(dit), x.at[1].mul(-3.0), t.at[1].set(5))
    np.testing.assert_allclose(beside[0], together[0], atol=1e-5)
    assert float(jnp.abs(beside[1] - together[1]).max()) > 1e-3


def test_every_patch_sees_every_other() -> None:
    dit = DiT(1, **TINY)

    @jax.jit
    def first(x: jax.Array) -> jax.Array:
        return dit.apply(shaken(dit), x, jnp.array([5]))[0, 0, 0, 0]

    assert (np.abs(jax.grad(first)(images(count=1))) > 0).all()


# --- Options ---


def test_rematerialisation_and_bfloat16_change_rounding_only() -> None:
    plain, again, half = (
        DiT(1, **TINY, **change) for change in ({}, {"remat": True}, {"dtype": jnp.bfloat16})
    )
    params, t = shaken(plain), jnp.array([0, 999])
    expected, same, result = (applied(dit)(params, images(), t) for dit in (plain, again, half))
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert result.dtype == jnp.float32 and (result != expected).any()
    assert float(jnp.abs(result - expected).max()) < 0.1 * float(jnp.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype(jnp.float32)}


def test_what_x_t_and_the_output_pass_whole_is_float32() -> None:
    half = DiT(1, **TINY, dtype=jnp.bfloat16, num_classes=3)
    params = shapes(half)

    def outer(params):
        return half.apply(
            params, images(), jnp.zeros(2), capture_intermediates=True, mutable="intermediates"
        )[1]

    found = jax.eval_shape(outer, params)["intermediates"]
    whole = ("patch_in", "temb", "class_embedding", "modulation_out", "LayerNorm_0", "patch_out")
    assert {found[name]["__call__"][0].dtype for name in whole} == {jnp.dtype("float32")}
    block = found["block_0"]
    assert block["modulation"]["__call__"][0].dtype == jnp.float32
    assert {
        block[name]["__call__"][0].dtype for name in ("q", "proj_out", "mlp_in", "mlp_out")
    } == {jnp.dtype("bfloat16")}
    text = str(jax.make_jaxpr(lambda p: half.apply(p, images(), jnp.zeros(2)))(params))
    assert text.count("preferred_element_type=float32") >= TINY["depth"]


def test_dropout_is_for_training_and_by_key() -> None:
    dit = DiT(1, **TINY, dropout=0.5)
    params, t = shaken(dit), jnp.array([5, 5])

    def run(**how) -> jax.Array:
        return applied(dit)(params, images(), t, **how)

    one, again, other = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-3
    np.testing.assert_array_equal(run(train=False), applied(DiT(1, **TINY))(params, images(), t))


@pytest.mark.parametrize("shape", [(8, 12, 1), (4, 6, 3)])
def test_any_size_that_patches_cover_works(shape: tuple) -> None:
    dit = DiT(2, **TINY)
    x = jnp.zeros((2, *shape))
    out = jax.eval_shape(dit.apply, shapes(dit, shape), x, jnp.zeros(2, jnp.int32))
    assert out.shape == (2, *shape[:2], 2)


@pytest.mark.parametrize(
    ("change", "shape", "words"),
    [
        ({"patch_size": 3}, (8, 9, 1), ["patch_size = 3", "8x9 image", "divisor of both"]),
        ({"num_heads": 3}, (8, 8, 1), ["hidden_size = 16", "num_heads = 3"]),
        ({"hidden_size": 18, "num_heads": 2}, (8, 8, 1), ["hidden_size = 18", "by 4"]),
        ({"mlp_ratio": 0.3}, (8, 8, 1), ["mlp_ratio = 0.3", "whole number"]),
        ({"label_dropout": 0.1}, (8, 8, 1), ["label_dropout = 0.1", "class_conditional = True"]),
    ],
)
def test_impossible_networks_say_what_to_change(change: dict, shape: tuple, words: list) -> None:
    dit = DiT(1, **(TINY | change))
    for attempt in (lambda: dit.check(shape), lambda: shapes(dit, shape)):
        with pytest.raises(ValueError) as error:
            attempt()
        assert all(word in str(error.value) for word in words), error.value


def test_labels_need_num_classes() -> None:
    dit = DiT(1, **TINY)
    with pytest.raises(ValueError, match="labels were given to a network without num_classes"):
        jax.eval_shape(dit.apply, shapes(dit), images(), jnp.array([5, 5]), jnp.array([3, 4]))
