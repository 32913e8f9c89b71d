"""How t is drawn in training, and that no loss has another mean for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kstest

from diffusion import times
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import PATHS
from diffusion.schedules import from_betas
from diffusion.structs import Process, Times
from diffusion.times import TIMES
from diffusion.variances import VARIANCES
from experiments.lookup import keywords


def chain(num_timesteps: int) -> Process:
    schedule = from_betas(np.full(num_timesteps, 0.1))
    return Process(schedule, PARAMETERIZATIONS["eps"], VARIANCES["fixed_small"])


def continuous(name: str) -> Process:
    return chain(2)._replace(path=PATHS[name]())


def made(name: str, process: Process, **options: Any) -> Times | None:
    """The entry of TIMES, or None where it refuses this kind of process and says what to choose."""
    try:
        return TIMES[name](process, **options)
    except ValueError as refusal:
        assert "Choose uniform" in str(refusal) and repr(name) in str(refusal)
        return None


@pytest.mark.parametrize("name", TIMES)
def test_t_is_drawn_of_a_chain_or_u_of_a_path(name: str) -> None:
    assert made(name, chain(5)) or made(name, continuous("cosine"))


OF_CHAINS = [name for name in TIMES if made(name, chain(5))]
OF_PATHS = [name for name in TIMES if made(name, continuous("cosine"))]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", OF_PATHS)
def test_two_densities_of_u_with_compensating_weights_have_one_mean(
    name: str, path: str, key: jax.Array
) -> None:
    """Of any function of u, gradients of a loss among them (Kingma and Gao 2023)."""
    process, n = continuous(path), 40_000
    options = {"weigh": True} if "weigh" in keywords(TIMES[name]) else {}
    if "mean" in keywords(TIMES[name]):  # one that reaches all of the path
        options |= {"mean": 0.5, "std": 2.5} if name == "log_normal" else {"std": 1.5}
    sampler = made(name, process, **options)
    assert sampler is not None and process.path is not None
    start, end = process.path.start, process.path.end
    u, weight = (
        np.asarray(x, np.float64) for x in sampler.sample(sampler.init(), jax.random.split(key, n))
    )
    assert (u >= start).all() and (u <= end * (1 + 1e-6)).all() and (weight > 0).all()
    share = (u - start) / (end - start)
    for of in (lambda s: np.sin(3 * s) + s, lambda s: s * (1 - s) ** 2):
        truth = np.mean(of((np.arange(n) + 0.5) / n))
        weighed = weight * of(share)
        assert weighed.mean() == pytest.approx(truth, abs=5 * weighed.std() / np.sqrt(n))


def test_unweighed_draws_are_of_the_density_that_they_name(key: jax.Array) -> None:
    process, keys = continuous("edm"), jax.random.split(key, 20_000)
    u, weight = TIMES["log_normal"](process, mean=-1.2, std=1.2).sample((), keys)
    assert kstest(np.log(u), "norm", (-1.2, 1.2)).pvalue > 1e-3 and (weight == 1).all()
    u, _ = TIMES["logit_normal"](continuous("straight"), mean=-0.5, std=0.8).sample((), keys)
    share = (np.asarray(u, np.float64) - 1e-3) / (1 - 1e-3)
    assert kstest(logit(share), "norm", (-0.5, 0.8)).pvalue > 1e-3
    shifted, _ = TIMES["logit_normal"](
        continuous("straight"), mean=-0.5, std=0.8, shift=3.0
    ).sample((), keys)
    moved = (np.asarray(shifted) - 1e-3) / (1 - 1e-3)
    np.testing.assert_allclose(moved, 3.0 * share / (1.0 + 2.0 * share), atol=1e-5)


def test_antithetic_draws_are_evenly_spread_and_one_for_the_batch() -> None:
    keys = jax.random.split(jax.random.key(3), 8)
    sampler = TIMES["antithetic"](continuous("linear_snr"))
    u = np.sort(np.asarray(sampler.sample((), keys)[0]))
    np.testing.assert_allclose(np.diff(u), 1 / 8, atol=1e-6)
    again = sampler.sample((), keys.at[1:].set(jax.random.split(jax.random.key(4), 7)))[0]
    np.testing.assert_array_equal(np.sort(again), u)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("logit_normal", {"std": 0.0}, "std = 0.0 and shift = 1.0 must be above 0"),
        ("log_normal", {"std": -1.0}, "std = -1.0 must be above 0"),
        ("log_normal", {"mean": 30.0}, "lies off the path, on which it goes from -6.21 to 4.38"),
    ],
)
def test_impossible_densities_are_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TIMES[name](continuous("edm"), **options)


@pytest.mark.parametrize("name", OF_CHAINS)
def test_a_loss_has_the_same_mean_however_t_is_drawn(name: str, key: jax.Array) -> None:
    """Before any loss was seen, and when every t has shown its own often."""
    values, n = np.array([1.0, 3.0, 0.5, 8.0, 2.0]), 20_000
    sampler = TIMES[name](chain(5))
    for state in (sampler.init(), fill(sampler, values, 20)):
        t, weight = sampler.sample(state, jax.random.split(key, n))
        assert t.dtype == jnp.int32 and int(t.min()) == 0 and int(t.max()) == 4
        for of in (values, values[::-1]):
            weighed = np.asarray(weight, np.float64) * of[t]
            error = max(weighed.std() / np.sqrt(n), 1e-6)
            assert weighed.mean() == pytest.approx(of.mean(), abs=4 * error)


def test_uniform_timesteps_are_uniform(key: jax.Array) -> None:
    sampler = times.uniform(chain(10))
    t, weight = sampler.sample(sampler.init(), jax.random.split(key, 20_000))
    counts = np.bincount(t, minlength=10)
    assert counts.size == 10 and abs(counts - 2000).max() < 5 * np.sqrt(1800)
    assert (weight == 1).all()


def fill(sampler, values: np.ndarray, history: int):
    state = sampler.init()
    for _ in range(history):
        state = sampler.update(state, jnp.arange(values.size), jnp.asarray(values, jnp.float32))
    return state


def test_importance_sampling_is_unbiased_and_follows_the_losses(key: jax.Array) -> None:
    values = np.array([1.0, 3.0, 0.5, 8.0])
    sampler = times.loss_second_moment(chain(4), history=3, uniform_share=1e-3)
    state = fill(sampler, values, 3)
    t, weight = sampler.sample(state, jax.random.split(key, 50_000))
    share = np.bincount(t, minlength=4) / 50_000
    expected = 0.999 * values / values.sum() + 0.001 / 4
    np.testing.assert_allclose(share, expected, atol=0.01)
    assert float((weight * values[t]).mean()) == pytest.approx(values.mean(), rel=0.02)
    # The point of it: constant losses are weighed to almost no variance at all.
    assert float((weight * values[t]).std()) < 0.2 * values.std()


def test_a_timestep_whose_losses_vary_is_drawn_more_often(key: jax.Array) -> None:
    """In proportion to the root of the second moment, which of equal means is larger there."""
    sampler = times.loss_second_moment(chain(2), history=2, uniform_share=1e-3)
    state = sampler.init()
    for row in ([1.0, 0.0], [1.0, 2.0]):
        state = sampler.update(state, jnp.arange(2), jnp.array(row))
    t, _ = sampler.sample(state, jax.random.split(key, 20_000))
    assert float(t.mean()) == pytest.approx(np.sqrt(2) / (1 + np.sqrt(2)), abs=0.015)


def test_rare_timesteps_of_a_long_chain_keep_their_probability() -> None:
    """Every u below the total belongs to one t, and to as many of them as its probability says."""
    p = np.random.default_rng(0).uniform(size=4000) ** 12
    p = 0.999 * p / p.sum() + 0.001 / 4000
    total, locate = times.whole_parts(jnp.asarray(p, jnp.float32))
    widths = np.maximum((jnp.asarray(p, jnp.float32) * 2.0**31).astype(jnp.uint32), 1)
    stops = np.cumsum(widths.astype(np.uint64))
    assert stops[-1] == int(total)
    for u in (stops - widths, stops - 1):  # the first and the last u of every t
        t, share = locate(jnp.asarray(u, jnp.uint32))
        np.testing.assert_array_equal(t, np.arange(4000))
        np.testing.assert_allclose(share, widths / stops[-1], rtol=1e-6)
    np.testing.assert_allclose(widths / stops[-1], p, rtol=3e-3)
    assert p.min() < 3e-7


def test_importance_sampling_is_uniform_until_every_history_is_full(key: jax.Array) -> None:
    sampler = times.loss_second_moment(chain(4), history=3)
    state = sampler.init()
    for _ in range(5):
        state = sampler.update(state, jnp.array([0, 1, 2]), jnp.array([9.0, 1.0, 1.0]))
    t, weight = sampler.sample(state, jax.random.split(key, 4000))
    assert (weight == 1).all() and abs(np.bincount(t, minlength=4) - 1000).max() < 150


def test_the_history_keeps_the_last_losses_even_within_one_batch() -> None:
    sampler = times.loss_second_moment(chain(3), history=2)
    t = jnp.array([1, 1, 0, 1, 1, 1])
    state = sampler.update(sampler.init(), t, jnp.array([1.0, 2.0, 7.0, 3.0, 4.0, 5.0]))
    assert state.seen.tolist() == [1, 5, 0]
    assert sorted(state.losses[1].tolist()) == [4.0, 5.0] and state.losses[0].tolist() == [7.0, 0.0]
    state = sampler.update(state, jnp.array([1, 2]), jnp.array([6.0, 8.0]))
    assert sorted(state.losses[1].tolist()) == [5.0, 6.0] and state.losses[2].tolist() == [8.0, 0.0]


@pytest.mark.parametrize(
    "options", [{"history": 0}, {"uniform_share": 0.0}, {"uniform_share": 2.0}]
)
def test_impossible_histories_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="history must be at least 1"):
        times.loss_second_moment(chain(10), **options)
