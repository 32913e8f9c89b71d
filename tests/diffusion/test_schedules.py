import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import schedules
from diffusion.likelihood import prior_term, to_bits_per_dim
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import uniform

# Those of a length, and not of given numbers.
NAMED = [
    name for name, make in BETAS.items() if "num_timesteps" in inspect.signature(make).parameters
]
LINEAR = schedules.linear(1000)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("num_timesteps", [1, 2, 37, 1000])
def test_every_schedule_keeps_the_contract(name: str, num_timesteps: int) -> None:
    betas = BETAS[name](num_timesteps)
    assert betas.dtype == np.float64 and betas.shape == (num_timesteps,)
    assert (betas > 0).all() and (betas <= 1).all()
    schedule = from_betas(betas)
    alpha_bar = np.asarray(schedule.alpha_bar)
    assert (np.diff(alpha_bar) < 0).all() and (alpha_bar < 1).all() and (alpha_bar >= 0).all()
    assert schedule.num_timesteps == num_timesteps
    for table in filter(lambda table: table is not None, schedule):
        assert table.shape == (num_timesteps,) and jnp.isfinite(table).all()


@pytest.mark.parametrize("name", NAMED)
def test_tables_are_derived_in_float64(name: str) -> None:
    betas = BETAS[name](1000).astype(np.longdouble)
    alpha_bar = np.cumprod(1 - betas)
    previous = np.concatenate([[1], alpha_bar[:-1]])
    variance = np.zeros(1000, np.longdouble)
    total = np.longdouble(0)
    for t, beta in enumerate(betas):
        total = total * (1 - beta) + beta
        variance[t] = total
    before = np.concatenate([[0], variance[:-1]])
    expected = {
        "alpha_bar": alpha_bar,
        "noise_variance": variance,
        "posterior_variance": betas * before / variance,
        "posterior_mean_x_0": np.sqrt(previous) * betas / variance,
        "posterior_mean_x_t": np.sqrt(1 - betas) * before / variance,
    }
    schedule = from_betas(BETAS[name](1000))
    for table, value in expected.items():
        actual = np.asarray(getattr(schedule, table))
        tiny = np.finfo(np.float32).tiny
        np.testing.assert_allclose(actual, value.astype(np.float64), rtol=1.3e-7, atol=tiny)


def test_published_values_of_the_linear_schedule() -> None:
    schedule = from_betas(LINEAR)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    assert float(schedule.posterior_log_variance[0]) == pytest.approx(-9.8167, abs=1e-4)
    assert float(schedule.log_beta[0]) == pytest.approx(-9.2103, abs=1e-4)
    # L_T of an image whose values are spread over [-1, 1] is about 1e-5 bits/dim.
    x_0 = jnp.linspace(-1, 1, 256).reshape(1, 16, 16, 1)
    assert 7e-6 < float(to_bits_per_dim(prior_term(schedule, x_0))[0]) < 1.1e-5


def test_the_family_of_warmups_differs_where_it_should() -> None:
    ten, fifty = schedules.warmup10(100), schedules.warmup50(100)
    assert (ten[10:] == 0.02).all() and ten[9] == 0.02 and ten[0] == 1e-4 and ten[8] < 0.02
    assert (fifty[50:] == 0.02).all() and fifty[48] < 0.02
    np.testing.assert_allclose(np.diff(np.sqrt(schedules.quadratic(100)), 2), 0, atol=1e-15)
    middle = schedules.sigmoid(101)[50]
    assert middle == pytest.approx((1e-4 + 0.02) / 2)
    np.testing.assert_allclose(1 / schedules.jsd(5), [5, 4, 3, 2, 1])


def test_cosine_follows_its_alpha_bar() -> None:
    alpha_bar = np.asarray(from_betas(schedules.cosine(500)).alpha_bar, np.float64)
    time = np.arange(1, 501) / 500
    f = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        alpha_bar[:-1], (f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2)[:-1], rtol=1e-5
    )
    assert schedules.cosine(500)[-1] == 0.999


@pytest.mark.parametrize(
    ("betas", "words"),
    [
        ([0.1, -0.2, 0.3], ["beta[1] = -0.2", "(0, 1)"]),
        ([0.1, 0.2, 1.5], ["beta[2] = 1.5"]),
        ([0.1, 1.0, 0.3], ["beta[1] = 1.0", "beta[2], may be 1"]),
        ([0.0, 0.1], ["beta[0] = 0.0"]),
        ([0.1, float("nan")], ["beta[1] = nan"]),
        ([], ["non-empty"]),
        ([[0.1]], ["shape (1, 1)"]),
    ],
)
def test_wrong_betas_are_named(betas: list, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        from_betas(betas)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("num_timesteps", [0, -3, 2.5, True])
def test_wrong_lengths_are_named(num_timesteps: int) -> None:
    with pytest.raises(ValueError, match="num_timesteps must be"):
        schedules.constant(num_timesteps)


@pytest.mark.parametrize("name", NAMED)
def test_respacing_keeps_the_marginals(name: str) -> None:
    betas = BETAS[name](1000)
    full = from_betas(betas)
    keep = uniform(1000, 37)
    short = respace(betas, keep)
    np.testing.assert_array_equal(short.told, keep)
    np.testing.assert_allclose(short.alpha_bar, full.alpha_bar[keep], rtol=1e-6)
    same = respace(betas, np.arange(1000))
    np.testing.assert_allclose(same.beta, full.beta, rtol=1e-6)
    np.testing.assert_array_equal(same.told, full.told)


def test_a_respaced_posterior_is_that_of_the_skipped_steps() -> None:
    """From t = 10 straight to t = 3: Bayes' rule on the two marginals and the composed step."""
    full, short = from_betas(LINEAR), respace(LINEAR, [3, 10])
    a3, a10 = float(full.alpha_bar[3]), float(full.alpha_bar[10])
    jump = a10 / a3
    precision = 1 / (1 - a3) + jump / (1 - jump)
    assert float(short.posterior_variance[1]) == pytest.approx(1 / precision, rel=1e-4)
    assert float(short.posterior_mean_x_0[1]) == pytest.approx(
        np.sqrt(a3) / (1 - a3) / precision, rel=1e-4
    )
    assert float(short.posterior_mean_x_t[1]) == pytest.approx(
        np.sqrt(jump) / (1 - jump) / precision, rel=1e-4
    )


@pytest.mark.parametrize("keep", [[], [3, 3], [5, 2], [-1, 4], [4, 1000], [0.5]])
def test_wrong_selections_are_named(keep: list) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        respace(LINEAR, keep)
