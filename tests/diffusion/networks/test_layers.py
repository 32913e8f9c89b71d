"""What the networks share: labels and the null class, and attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import NETWORKS
from diffusion.networks.layers import ClassEmbedding, attention, fourier_features
from tests.diffusion.networks.small import applied, shaken, shapes, small

every_network = pytest.mark.parametrize("name", NETWORKS)


def conditional(name: str, **fields):
    return small(NETWORKS[name], {}, out_channels=1, num_classes=10, **fields)


def drop(labels: np.ndarray, share: float, seed: int = 0, train: bool = True) -> np.ndarray:
    """The labels that the table is asked for, told by rows that hold their own number."""
    table = ClassEmbedding(10, 1, share)
    params = {"params": {"embedding": jnp.arange(11.0)[:, None]}}
    rngs = {"dropout": jax.random.key(seed)}
    rows = table.apply(params, jnp.asarray(labels), len(labels), train, rngs=rngs)
    return np.asarray(rows[:, 0])


def test_attention_is_its_formula_and_gives_the_values_mean_where_queries_are_zero() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 5, 4))
    weights = np.exp(np.einsum("bhqc,bhkc->bhqk", q, k) / 2)
    weights /= weights.sum(-1, keepdims=True)
    exact = np.einsum("bhqk,bhkc->bhqc", weights, v)
    f32 = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    np.testing.assert_allclose(attention(*f32), exact, atol=1e-5)
    mean = attention(0 * f32[0], *f32[1:])
    np.testing.assert_allclose(mean, np.broadcast_to(v.mean(2, keepdims=True), v.shape), atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_training_drops_that_share_of_the_labels_of_every_class(share: float) -> None:
    labels = np.tile(np.arange(10), 4000)
    found = drop(labels, share)
    dropped = found == 10
    assert ((found == labels) | dropped).all()
    deviation = np.sqrt(share * (1 - share) / 4000)
    shares = dropped.reshape(-1, 10).mean(0)
    assert (abs(shares - share) < 5 * deviation).all()
    other = drop(labels, share, seed=1) == 10
    both, error = (dropped & other).mean(), np.sqrt(share**2 * (1 - share**2) / labels.size)
    assert abs(both - share**2) < 5 * error  # independent of each other
    np.testing.assert_array_equal(drop(labels, share), found)


def test_labels_are_dropped_in_training_only_and_with_a_share_only() -> None:
    labels = np.arange(10)
    np.testing.assert_array_equal(drop(labels, 0.9, train=False), labels)
    np.testing.assert_array_equal(drop(labels, 0.0), labels)


@every_network
def test_no_dropout_asks_for_no_random_number(name: str) -> None:
    network = conditional(name)
    x, labels = jnp.zeros((2, 8, 8, 1)), jnp.arange(2)

    def apply(params):
        return network.apply(params, x, jnp.zeros(2), labels, train=True)

    assert jax.eval_shape(apply, shapes(network)).shape == x.shape


@every_network
def test_the_null_class_has_a_row_whatever_the_share(name: str) -> None:
    """So that a checkpoint can be trained on with another share."""
    without, some = (shapes(conditional(name, label_dropout=share)) for share in (0.0, 0.5))
    assert without == some
    assert some["params"]["class_embedding"]["embedding"].shape[0] == 11


@every_network
def test_the_null_class_learns_from_dropped_labels_and_from_nothing_else(name: str) -> None:
    t, x = jnp.full(64, 5), jax.random.normal(jax.random.key(3), (64, 8, 8, 1))

    def gradient(share: float) -> np.ndarray:
        network = conditional(name, label_dropout=share)

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            out = network.apply(params, x, t, jnp.full(64, 3), train=True, rngs=rngs)
            return jnp.mean(jnp.square(out))

        table = jax.jit(jax.grad(loss))(shaken(network))["params"]["class_embedding"]
        return np.abs(table["embedding"]).max(axis=1)

    assert (np.flatnonzero(gradient(0.0)) == [3]).all()
    assert (np.flatnonzero(gradient(0.5)) == [3, 10]).all()


@every_network
def test_label_dropout_leaves_the_other_random_numbers_alone(name: str) -> None:
    """At a share so small that no label is dropped, the same activations are."""
    t, x = jnp.full(4, 5), jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    params = shaken(conditional(name))

    def run(**fields) -> jax.Array:
        apply, rngs = applied(conditional(name, dropout=0.5, **fields)), jax.random.key(0)
        return apply(params, x, t, jnp.arange(4), train=True, rngs={"dropout": rngs})

    np.testing.assert_array_equal(run(), run(label_dropout=1e-9))


@every_network
def test_a_label_out_of_range_gives_nan(name: str) -> None:
    """And no other label's images. Number 10 is the null class."""
    network, labels = conditional(name), jnp.array([3, 10, -1, 11, 2**31 - 1])
    x, t = jnp.zeros((5, 8, 8, 1)), jnp.zeros(5)
    out = applied(network)(shaken(network), x, t, labels)
    assert jnp.isfinite(out[:2]).all() and jnp.isnan(out[2:]).all()


# --- Features of the input ---


@pytest.mark.parametrize(("num_levels", "exponents"), [(256, (7, 8)), (17, (3, 4))])
def test_features_show_which_level_and_how_far_from_it(
    num_levels: int, exponents: tuple[int, ...]
) -> None:
    levels = jnp.linspace(-1.0, 1.0, num_levels).reshape(1, -1, 1, 1)
    found = fourier_features(levels, exponents)
    assert found.shape == (1, num_levels, 1, 5)
    np.testing.assert_array_equal(found[..., :1], levels)
    features = found[0, :, 0, 1:]
    apart = jnp.linalg.norm(jnp.diff(features[:, :2], axis=0), axis=1)
    np.testing.assert_allclose(apart, 2.0, atol=0.02)  # opposite points of the circle
    fine = jnp.linalg.norm(jnp.diff(features[:, 2:], axis=0), axis=1)
    np.testing.assert_allclose(fine, 0.0, atol=0.04)  # the same phase of every level, nearly
    between = fourier_features(levels + 1.0 / (num_levels - 1), exponents)[0, :, 0, 3:]
    np.testing.assert_allclose(jnp.linalg.norm(between - features[:, 2:], axis=1), 2.0, atol=0.02)


@every_network
def test_without_features_a_network_is_what_it_was_and_with_them_it_has_them(name: str) -> None:
    plain, none, some = (
        small(NETWORKS[name], {}, out_channels=1, **fields)
        for fields in ({}, {"fourier_features": ()}, {"fourier_features": (1, 2)})
    )
    assert shapes(plain) == shapes(none) != shapes(some)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.arange(2)
    programs = [jax.make_jaxpr(each.apply)(shaken(each), x, t) for each in (plain, none)]
    assert str(programs[0]) == str(programs[1]) and "sin" not in str(
        jax.make_jaxpr(lambda x: fourier_features(x, ()))(x)
    )
    # One grey level apart is another output, and x itself is still seen.
    apply, params = applied(some), shaken(some)
    moved = [apply(params, x + step, t) - apply(params, x, t) for step in (0.125, 2.0)]
    assert all(abs(change).max() > 1e-3 for change in moved)
