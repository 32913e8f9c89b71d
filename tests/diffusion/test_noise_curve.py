"""The noise levels that a probability flow passes between the timesteps of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from diffusion.noise_curve import noise_curve, noise_level
from diffusion.schedules import BETAS, from_betas, respace
from tests.diffusion.test_schedules import NAMED


@pytest.mark.parametrize("name", NAMED)
def test_the_curve_meets_the_chain_and_falls_smoothly(name: str) -> None:
    betas = BETAS[name](200)
    if betas[-1] == 1.0:
        with pytest.raises(ValueError, match="ends in pure noise"):
            noise_curve(from_betas(betas))
        return
    schedule = from_betas(betas)
    curve = noise_curve(schedule)
    level = jax.jit(jax.vmap(lambda u: noise_level(curve, u)))
    whole = level(jnp.arange(200.0))
    # The two tables hold the digits at either end of the chain.
    np.testing.assert_allclose(
        -jnp.expm1(whole.log_alpha_bar), schedule.one_minus_alpha_bar, rtol=1e-6
    )
    np.testing.assert_allclose(jnp.exp(whole.log_alpha_bar), schedule.alpha_bar, rtol=2e-5)
    np.testing.assert_array_equal(whole.model_t, np.arange(200))
    assert (level(jnp.linspace(0.0, 199.0, 20_001)).rate <= 0.0).all()
    # A formula that is exact for cubics, inside every interval.
    middle, h = jnp.arange(199.0) + 0.5, 0.125
    f = {j: np.asarray(level(middle + j * h).log_alpha_bar, np.float64) for j in (-2, -1, 1, 2)}
    difference = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
    rate = level(middle).rate
    assert (abs(difference - rate) < 4e-6 * abs(f[2]) + 1e-5 * abs(rate)).all()
    # Both sides of every knot agree in value and slope.
    a, b, c, d = np.asarray(curve.cubic, np.float64).T
    np.testing.assert_allclose((a + b + c + d)[:-1], a[1:], rtol=1e-6)
    np.testing.assert_allclose((b + 2 * c + 3 * d)[:-1], b[1:], rtol=1e-5, atol=1e-6 * abs(b).max())


def test_a_smooth_chain_gets_the_cubic_spline() -> None:
    betas = BETAS["linear"](200)
    values = np.cumsum(np.log1p(-betas))
    rises = np.diff(values)
    slopes = 1.5 * rises[0] - 0.5 * rises[1], 1.5 * rises[-1] - 0.5 * rises[-2]
    spline = CubicSpline(np.arange(200), values, bc_type=((1, slopes[0]), (1, slopes[1])))
    cubic = np.asarray(noise_curve(from_betas(betas)).cubic)
    expected = spline.c[::-1].T
    np.testing.assert_allclose(cubic, expected, rtol=1e-5, atol=1e-5 * abs(rises).min())
    # Its slope at t is what the chain itself has between two steps: the beta half a step later.
    later = 0.5 * (betas[1:] + betas[:-1])
    np.testing.assert_allclose(cubic[:, 1], np.log1p(-later), rtol=1e-4)


def test_the_curve_falls_where_a_spline_would_turn() -> None:
    betas = [1e-4] * 5 + [0.5] + [1e-4] * 5
    spline = CubicSpline(np.arange(11), np.cumsum(np.log1p(-np.array(betas))))
    u = np.linspace(0.0, 10.0, 2001)
    assert spline(u, 1).max() > 0.05
    curve = noise_curve(from_betas(betas))
    rate = jax.vmap(lambda u: noise_level(curve, u).rate)(jnp.asarray(u, jnp.float32))
    assert float(rate.max()) < 1e-6 and float(rate.min()) < -0.5


def test_a_respaced_chain_asks_at_the_timesteps_between() -> None:
    schedule = respace(BETAS["linear"](1000), [0, 20, 150, 400, 999])
    curve = noise_curve(schedule)
    times = [float(noise_level(curve, jnp.array(u)).model_t) for u in (0.0, 0.5, 3.0, 3.25, 4.0)]
    assert times == [0.0, 10.0, 400.0, 549.75, 999.0]


def test_two_timesteps_are_a_straight_line() -> None:
    curve = noise_curve(from_betas([0.1, 0.2]))
    level = noise_level(curve, jnp.array(0.5))
    assert float(level.log_alpha_bar) == pytest.approx(np.log(0.9) + 0.5 * np.log(0.8))
    assert float(level.rate) == pytest.approx(np.log(0.8))
