"""Guidance, thresholds, and what a network may be taken to say: conversions and the score."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import at, q_sample
from diffusion.guidance import classifier_free
from diffusion.parameterizations import PARAMETERIZATIONS, SCORE, convert
from diffusion.schedules import BETAS, from_betas
from diffusion.thresholds import THRESHOLDS
from tests.diffusion import mixture
from tests.diffusion.walks import ON_CHAINS

LINEAR = from_betas(BETAS["linear"](1000))


def network(calls: list | None = None):
    """Two outputs a channel, of x, t and a label; label 9 is none."""

    def apply(params, x_t, t, labels):
        if calls is not None:
            calls.append(x_t.shape[0])
        mean = x_t * (1 + labels)[:, None] + 0.01 * t[:, None]
        return jnp.concatenate([mean, 5.0 * mean], axis=-1)

    return apply


def none(inputs):
    return {"labels": jnp.full_like(inputs["labels"], 9)}


X = jax.random.normal(jax.random.key(0), (4, 3))
TIMES, LABELS = jnp.full(4, 500), jnp.arange(4)


def outputs(scale: float, interval=None, t=TIMES):
    guided = classifier_free(network(), none, scale, interval, channels=3)
    return guided(None, X, t, labels=LABELS)


def test_scale_1_is_the_conditional_network_and_0_the_other() -> None:
    conditional = network()(None, X, TIMES, LABELS)
    unconditional = network()(None, X, TIMES, none({"labels": LABELS})["labels"])
    np.testing.assert_array_equal(outputs(1.0), conditional)
    np.testing.assert_array_equal(outputs(0.0), unconditional)
    for scale in (-1.0, 0.5, 3.0):
        found, line = outputs(scale), unconditional + scale * (conditional - unconditional)
        np.testing.assert_allclose(found[:, :3], line[:, :3], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[:, 3:], conditional[:, 3:])  # of the variance


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_outside_its_interval_nothing_is_guided(scale: float) -> None:
    for t, inside in ((99, False), (100, True), (600, True), (601, False)):
        times = jnp.full(4, t)
        found = outputs(scale, (100, 600), times)
        expected = outputs(scale if inside else 1.0, None, times)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)  # sums of some 40


def test_the_network_is_asked_once_with_both() -> None:
    calls: list[int] = []
    classifier_free(network(calls), none, 2.0, channels=3)(None, X, TIMES, labels=LABELS)
    assert calls == [8]
    calls.clear()
    classifier_free(network(calls), none, 0.0, channels=3)(None, X, TIMES, labels=LABELS)
    assert calls == [4]


@pytest.mark.parametrize(
    ("given", "wanted"), list(itertools.permutations([*ON_CHAINS, "score"], 2))
)
def test_whatever_a_network_says_it_says_the_same(given: str, wanted: str) -> None:
    known = {**PARAMETERIZATIONS, "score": SCORE}
    x_0 = jax.random.uniform(jax.random.key(1), (6, 3), minval=-1.0)
    eps = jax.random.normal(jax.random.key(2), x_0.shape)
    t = jnp.array([1, 50, 200, 400, 600, 800])
    now, x_t = at(LINEAR, t, x_0), q_sample(LINEAR, x_0, t, eps)
    value, expected = (known[name].target(now, x_0, eps, x_t) for name in (given, wanted))

    def read(value: jax.Array) -> jax.Array:
        return convert(now, value, x_t, known[given], known[wanted])

    # What a few units of the last place of `value` are worth, x_t's being no less than eps's.
    lost = abs(read(value + 1e-6) - read(value)) + abs(read(value * (1 + 1e-6)) - read(value))
    assert (abs(read(value) - expected) <= 2e-5 + 1e-5 * abs(expected) + lost).all()
    assert (lost <= 2e-2 * (1 + abs(expected))).all()


@pytest.mark.parametrize("t", [5, 100, 400, 900])
def test_the_best_denoisers_score_is_the_gradient_of_the_log_density(t: int) -> None:
    """Tweedie's formula, on a mixture and by automatic differentiation."""
    x_t = jnp.linspace(-2.0, 2.0, 41)[:, None]
    now = at(LINEAR, jnp.asarray(t), x_t)
    x_0 = mixture.x_0_given_x_t(now, x_t)
    found = convert(now, x_0, x_t, PARAMETERIZATIONS["x_0"], SCORE)
    truth = jax.grad(lambda x: mixture.log_density(now, x).sum())(x_t)
    np.testing.assert_allclose(found, truth, rtol=2e-3, atol=2e-3 * float(abs(truth).max()))


@pytest.mark.parametrize("t", [100, 400])
def test_denoising_score_matching_has_the_score_as_its_minimum(t: int) -> None:
    """E f(x_t) (-eps / sigma) = E f(x_t) score(x_t) for any f (Vincent 2011), so that the squared
    error of f to the one differs from that to the other by a constant."""
    n = 400_000
    x_0 = mixture.draw(jax.random.key(3), (n, 1))
    eps = jax.random.normal(jax.random.key(4), x_0.shape)
    times = jnp.full(n, t)
    x_t = q_sample(LINEAR, x_0, times, eps)
    now = at(LINEAR, times, x_t)
    target = SCORE.target(now, x_0, eps, x_t)
    score = convert(now, mixture.x_0_given_x_t(now, x_t), x_t, PARAMETERIZATIONS["x_0"], SCORE)
    for f in (jnp.ones_like, jnp.sin, lambda x: x, lambda x: jnp.exp(-(x**2))):
        gap = np.asarray(f(x_t) * (target - score), np.float64)
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(n)
    assert float(((target - score) ** 2).mean()) > 0.01  # they are not the same thing


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_moves_no_estimate_that_an_image_may_have(name: str) -> None:
    """And none outwards; each example by itself, in its order."""
    x = jnp.stack([jnp.linspace(-1.0, 1.0, 101), jnp.linspace(-3.0, 3.0, 101)])
    found = THRESHOLDS[name](x)
    assert found.shape == x.shape and found.dtype == x.dtype
    np.testing.assert_array_equal(found[0], x[0])
    assert (abs(found) <= abs(x)).all() and (jnp.diff(found) >= 0).all()
    np.testing.assert_array_equal(THRESHOLDS[name](x[1:]), found[1:])


def test_thresholds() -> None:
    x = jnp.stack([jnp.linspace(-0.9, 0.9, 101), jnp.linspace(-3.0, 3.0, 101)])
    np.testing.assert_array_equal(thresholds.none(x), x)
    np.testing.assert_array_equal(thresholds.clip(x), jnp.clip(x, -1, 1))
    found = thresholds.percentile(x, quantile=0.9)
    np.testing.assert_allclose(found[0], x[0])  # within the range nothing changes
    s = np.quantile(abs(np.asarray(x[1])), 0.9)
    np.testing.assert_allclose(found[1], np.clip(x[1], -s, s) / s, rtol=1e-6)
    np.testing.assert_allclose(thresholds.percentile(x, most=1.0), thresholds.clip(x), rtol=1e-6)
    # An example by itself, whatever stands beside it, of any rank.
    image = x.reshape(2, 101, 1, 1)
    np.testing.assert_array_equal(
        thresholds.percentile(image[1:]), thresholds.percentile(image)[1:]
    )
