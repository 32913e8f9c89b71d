"""A learned density of u: that it is a learned path, and the one of the least variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.losses import vlb_weight
from diffusion.paths import at
from diffusion.structs import Path, Times
from diffusion.times import TIMES, piecewise_linear
from tests.diffusion.on_paths import every_path
from tests.diffusion.test_times import continuous

PROBABILITIES = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(12)), jnp.float32)


@every_path
def test_the_weighed_bound_is_that_of_a_path_whose_log_snr_is_learned(path: Path) -> None:
    """VDM section 5.1: half the slope of the log SNR by the share, for the error of eps."""
    shares = (jnp.arange(200) + 0.5) / 200
    length = path.end - path.start

    def placed(share: jax.Array) -> jax.Array:
        return path.start + length * piecewise_linear(PROBABILITIES, share)[0]

    learned = path._replace(
        signal=lambda s: path.signal(placed(s)), noise=lambda s: path.noise(placed(s))
    )
    process = continuous("straight")._replace(path=path)
    whole = vlb_weight(process, at(learned, shares))
    weight = piecewise_linear(PROBABILITIES, shares)[1]
    found = length * weight * vlb_weight(process, at(path, placed(shares)))
    np.testing.assert_allclose(found, whole, rtol=1e-4)


def test_the_map_rises_onto_the_whole_and_its_slope_is_its_derivative() -> None:
    shares = jnp.linspace(0.0, 1.0, 1001)
    place, slope = piecewise_linear(PROBABILITIES, shares)
    assert float(place[0]) == 0.0 and float(place[-1]) == pytest.approx(1.0, abs=1e-6)
    assert (jnp.diff(place) > 0.0).all()
    of = lambda s: piecewise_linear(PROBABILITIES, s)[0]  # noqa: E731
    derivative = jax.jvp(of, (shares[1:-1],), (jnp.ones(999),))[1]
    np.testing.assert_allclose(slope[1:-1], derivative, rtol=1e-6)
    many = piecewise_linear(PROBABILITIES, (jnp.arange(10**5) + 0.5) / 10**5)[0]
    counts, _ = np.histogram(many, bins=12, range=(0.0, 1.0))
    np.testing.assert_allclose(counts / 1e5, PROBABILITIES, atol=2e-4)


def losses_at(u: jax.Array, key: jax.Array) -> jax.Array:
    """Steep near 0, and of a spread of their own."""
    return (0.05 / (0.02 + u)) * jnp.exp(0.5 * jax.random.normal(key, u.shape))


def taught(sampler: Times, steps: int, batch: int = 64) -> tuple:
    def step(state: tuple, key: jax.Array) -> tuple:
        drawn, noise = jax.random.split(key)
        u, _ = sampler.sample(state, jax.random.split(drawn, batch))
        return sampler.update(state, u, losses_at(u, noise)), None

    return jax.lax.scan(step, sampler.init(), jax.random.split(jax.random.key(0), steps))[0]


def test_it_comes_to_the_least_variance_and_keeps_the_mean() -> None:
    """By Cauchy and Schwarz no density has a smaller second moment than (integral of the root of
    the second moment at u)^2."""
    process, n = continuous("linear_snr"), 200_000
    sampler = TIMES["learned"](process, parts=32, history=64, uniform_share=1e-3)
    keys = jax.random.split(jax.random.key(1), n)
    grid = (np.arange(10**5) + 0.5) / 10**5
    mean = np.mean(0.05 / (0.02 + grid)) * np.exp(0.125)
    least = (np.mean(0.05 / (0.02 + grid)) * np.exp(0.25)) ** 2
    moments = []
    for state in (sampler.init(), jax.jit(lambda: taught(sampler, 400))()):
        u, weight = sampler.sample(state, keys)
        weighed = np.asarray(weight * losses_at(u, jax.random.key(2)), np.float64)
        assert weighed.mean() == pytest.approx(mean, abs=5 * weighed.std() / np.sqrt(n))
        moments.append(np.square(weighed).mean())
    assert moments[0] > 3.0 * least and 0.99 * least < moments[1] < 1.05 * least


def test_before_it_has_seen_every_part_it_is_antithetic() -> None:
    process, keys = continuous("cosine"), jax.random.split(jax.random.key(3), 16)
    sampler = TIMES["learned"](process, parts=8, history=4)
    state = sampler.update(sampler.init(), jnp.full(20, 0.01), jnp.full(20, 9.0))
    assert state.seen.tolist() == [20] + 7 * [0]
    u, weight = sampler.sample(state, keys)
    np.testing.assert_allclose(u, TIMES["antithetic"](process).sample((), keys)[0], rtol=1e-5)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": 0}, "parts = 0 must be at least 1"),
        ({"history": 0}, "history must be at least 1"),
        ({"uniform_share": 0.0}, r"uniform_share in \(0, 1\]"),
    ],
)
def test_impossible_parts_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TIMES["learned"](continuous("edm"), **options)
