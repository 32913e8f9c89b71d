"""Captions in networks: padding is not seen, rows do not meet, and dropout leaves no caption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import NETWORKS
from diffusion.networks.text import TextEncoder, TextSettings
from tests.diffusion.networks.small import applied, filled, small

TEXT = TextSettings(vocabulary_size=20, length=6, width=16, depth=2, num_heads=2, dropout=0.5)
SIZES = dict(
    **dict(channel_multipliers=(1, 2), cross_attention_resolutions=(4, 2)),
    **dict(patch_size=2, hidden_size=16, depth=2),
)
TOKENS = np.array([[1, 5, 7, 0, 0, 0], [1, 9, 0, 0, 0, 0], [1, 3, 4, 5, 6, 7]], np.int32)
x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 2)), jnp.float32)
t = jnp.array([0, 40, 900])


def told(name: str, text: TextSettings | None = TEXT, **sizes):
    return small(NETWORKS[name], SIZES | sizes, out_channels=2, text=text)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    module = told(request.param)
    params = filled(jax.eval_shape(module.init, jax.random.key(0), x, t, tokens=TOKENS))
    return lambda tokens, **more: applied(module)(params, x, t, tokens=tokens, **more)


def test_padding_is_ignored(network) -> None:
    """A caption in a longer row says the same."""
    longer = np.pad(TOKENS[:2, :3], ((0, 0), (0, 0)))
    short = network(np.pad(longer, ((0, 1), (0, 0)), constant_values=1))
    whole = network(TOKENS)
    np.testing.assert_allclose(short[:2], whole[:2], atol=2e-6)


def test_words_and_their_order_matter(network) -> None:
    whole = network(TOKENS)
    other, turned = TOKENS.copy(), TOKENS.copy()
    other[0, 2] = 8
    turned[0, 1:3] = 7, 5
    for tokens in (other, turned):
        found = network(tokens)
        assert np.abs(found[0] - whole[0]).max() > 1e-4
        np.testing.assert_allclose(found[1:], whole[1:], atol=1e-6)


def test_the_order_of_the_batch_does_not_matter(network) -> None:
    """Captions of the other rows do not reach a row."""
    shared = np.concatenate([TOKENS[:1], TOKENS[:0:-1]])
    np.testing.assert_allclose(network(shared)[0], network(TOKENS)[0], atol=1e-6)


def test_training_drops_whole_captions(network) -> None:
    """An example's output is that of its caption or that of none, each now and then."""
    none = np.where(np.arange(6) == 0, 1, 0).astype(np.int32) * np.ones((3, 1), np.int32)
    kept, dropped = network(TOKENS), network(none)
    outcomes = set()
    for seed in range(20):
        found = network(TOKENS, train=True, rngs={"dropout": jax.random.key(seed)})
        for i in range(3):
            near = [np.allclose(found[i], y[i], atol=1e-5) for y in (kept, dropped)]
            assert sum(near) == 1
            outcomes.add((i, near.index(True)))
    assert len(outcomes) == 6


def test_a_number_that_is_no_word_gives_nan() -> None:
    encoder = TextEncoder(TEXT)
    params = encoder.init(jax.random.key(0), TOKENS, False)
    for wrong in (20, -1):
        tokens = TOKENS.copy()
        tokens[0, 1] = wrong
        found = encoder.apply(params, tokens, False)
        if wrong == 20:
            assert np.isnan(found.words[0]).any()
        assert np.isfinite(found.words[1]).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_captions_without_a_text_encoder_are_refused(name: str) -> None:
    plain = told(name, text=None, cross_attention_resolutions=())
    with pytest.raises(ValueError, match="tokens are for a network with a text encoder"):
        plain.init(jax.random.key(0), x, t, tokens=TOKENS)
    with pytest.raises(ValueError, match="which needs them"):
        told(name).init(jax.random.key(0), x, t)


def test_cross_attention_to_nothing_and_a_width_that_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="there are none"):
        told("unet", text=None).check((4, 4, 2))
    with pytest.raises(ValueError, match=r"config.text.width = 15 .*num_heads"):
        told("dit", text=TEXT._replace(width=15)).check((4, 4, 2))
