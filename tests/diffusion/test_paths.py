"""Paths in continuous time: what each is made of, and a chain as one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from diffusion.paths import PATHS, at, cubics, grid, levels_of, through
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import uniform
from diffusion.structs import Path
from tests.diffusion.test_schedules import NAMED


@pytest.mark.parametrize("name", NAMED)
def test_the_curve_meets_the_chain_and_falls_smoothly(name: str) -> None:
    betas = BETAS[name](200)
    if betas[-1] == 1.0:
        with pytest.raises(ValueError, match="ends in pure noise"):
            through(from_betas(betas))
        return
    schedule = from_betas(betas)
    path = through(schedule)
    now = jax.jit(lambda u: at(path, u))
    whole = now(jnp.arange(200.0))
    np.testing.assert_allclose(whole.noise, schedule.noise, rtol=1e-6)
    np.testing.assert_allclose(whole.signal, schedule.signal, rtol=1e-5)
    np.testing.assert_array_equal(whole.told, np.arange(200))
    finely = now(jnp.linspace(0.0, 199.0, 20_001))
    assert (finely.d_signal <= 0.0).all() and (finely.d_noise >= 0.0).all()
    # Both sides of every knot agree in value and slope.
    a, b, c, d = cubics(schedule).T
    np.testing.assert_allclose((a + b + c + d)[:-1], a[1:], rtol=1e-6)
    np.testing.assert_allclose((b + 2 * c + 3 * d)[:-1], b[1:], rtol=1e-5, atol=1e-6 * abs(b).max())


def test_a_smooth_chain_gets_the_cubic_spline() -> None:
    betas = BETAS["linear"](200)
    values = np.cumsum(np.log1p(-betas))
    rises = np.diff(values)
    slopes = 1.5 * rises[0] - 0.5 * rises[1], 1.5 * rises[-1] - 0.5 * rises[-2]
    spline = CubicSpline(np.arange(200), values, bc_type=((1, slopes[0]), (1, slopes[1])))
    cubic = cubics(from_betas(betas))
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
    now = at(through(from_betas(betas)), jnp.asarray(u, jnp.float32))
    rate = 2.0 * now.d_signal / now.signal  # of log alpha_bar
    assert float(rate.max()) < 1e-6 and float(rate.min()) < -0.5


def test_a_respaced_chain_asks_at_the_timesteps_between() -> None:
    schedule = respace(BETAS["linear"](1000), [0, 20, 150, 400, 999])
    times = at(through(schedule), jnp.array([0.0, 0.5, 3.0, 3.25, 4.0])).told
    assert times.tolist() == [0.0, 10.0, 400.0, 549.75, 999.0]


def test_two_timesteps_are_a_straight_line() -> None:
    now = at(through(from_betas([0.1, 0.2])), jnp.array(0.5))
    assert float(2 * jnp.log(now.signal)) == pytest.approx(np.log(0.9) + 0.5 * np.log(0.8))
    assert float(2 * now.d_signal / now.signal) == pytest.approx(np.log(0.8))


# --- Every path ---

WRITTEN = {  # d signal / du and d noise / du
    "straight": lambda u: (-np.ones_like(u), np.ones_like(u)),
    "edm": lambda u: (np.zeros_like(u), np.ones_like(u)),
    "cosine": lambda u: (-np.pi / 2 * np.sin(np.pi * u / 2), np.pi / 2 * np.cos(np.pi * u / 2)),
}


def inside(path: Path, count: int = 9) -> np.ndarray:
    return np.geomspace(path.start or 1e-3 * path.end, path.end, count)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_those_of_the_coefficients(name: str) -> None:
    """By differences in float64, and as written where it is short."""
    path = PATHS[name]()
    u = path.start + (path.end - path.start) * np.linspace(0.05, 0.95, 7)
    with jax.enable_x64(True):
        now = at(path, jnp.asarray(u))
        h = 1e-5 * path.end
        low, high = (at(path, jnp.asarray(u + sign * h)) for sign in (-1, 1))
        for found, value in (("d_signal", "signal"), ("d_noise", "noise")):
            difference = (getattr(high, value) - getattr(low, value)) / (2 * h)
            np.testing.assert_allclose(getattr(now, found), difference, rtol=1e-6, atol=1e-9)
        if name in WRITTEN:
            found = now.d_signal, now.d_noise
            np.testing.assert_allclose(found, WRITTEN[name](u), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_begins_near_clean_data_and_ends_in_its_prior(name: str) -> None:
    path = PATHS[name]()
    ends = at(path, jnp.array([path.start, path.end]))
    signal, noise = np.asarray(ends.signal, np.float64), np.asarray(ends.noise, np.float64)
    assert signal[0] > 0.995 and noise[0] < 0.02
    assert noise[1] / max(signal[1], 1e-9) > 12  # data of [-1, 1] leave next to no trace
    assert np.hypot(signal[1] * 0.5, noise[1]) == pytest.approx(path.deviation, rel=3e-3)
    ratio = np.asarray(at(path, jnp.asarray(inside(path))).noise, np.float64)
    assert (np.diff(ratio) > 0).all()
    if name in ("cosine", "vp", "linear_snr"):
        np.testing.assert_allclose(signal**2 + noise**2, 1.0, rtol=1e-6)


@pytest.mark.parametrize("betas", [BETAS["linear"](50, 1e-3, 0.2), BETAS["cosine"](50)])
def test_the_grid_of_a_chains_path_is_the_chains_levels(betas: np.ndarray) -> None:
    chain = from_betas(betas)
    found, expected = grid(through(chain), np.arange(50.0)), levels_of(chain)
    for field, table in expected._asdict().items():
        if table is not None:  # a chain has no derivatives
            np.testing.assert_allclose(getattr(found, field), table, rtol=2e-6, atol=1e-12)


def test_the_vp_path_is_the_limit_of_the_linear_chain() -> None:
    """With T times larger betas of a chain T times shorter, and an error in proportion to 1 / T."""

    def error(num: int) -> float:
        chain = respace(BETAS["linear"](num, 0.1 / num, 20 / num), uniform(num, 20))
        levels = levels_of(chain)
        path = grid(PATHS["vp"](), (levels.time[2:] + 1) / num)
        return float(abs(levels.log_ratio[2:] - path.log_ratio[1:]).max())

    assert error(4000) < 0.02 and error(1000) / error(4000) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("name", PATHS)
def test_a_grid_has_the_posterior_of_its_steps(name: str) -> None:
    """q(x_t | x_{t+1}, x_0) by conditioning the joint Gaussian of both on x_0."""
    path = PATHS[name]()
    levels = grid(path, inside(path)[:-1])
    signal, noise = levels.signal, levels.noise
    covariance = signal[1:] / signal[:-1] * noise[:-1] ** 2
    expected = noise[:-1] ** 2 - covariance**2 / noise[1:] ** 2
    np.testing.assert_allclose(levels.variance, expected, rtol=1e-6)
    assert levels.num_steps == 8 and levels.variance[0] == 0.0
    assert signal[0] == 1.0 and noise[0] == 0.0 and np.isinf(levels.log_ratio[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grid(PATHS["straight"](), np.array([0.5, 0.5])), "rising row"),
        (lambda: grid(PATHS["straight"](), np.array([0.5, 1.1])), "leave the path"),
        (lambda: PATHS["edm"](noise_min=90.0), "must be above 0 and below noise_max = 80"),
        (lambda: PATHS["cosine"](log_snr_max=-20.0), "-20.0 must be below log_snr_max = -20"),
        (lambda: PATHS["straight"](start=0.0), "start = 0.0 must lie between 0 and 1"),
        (lambda: PATHS["vp"](start=1.0), "start = 1.0 must lie between 0 and 1"),
        (lambda: PATHS["vp"](beta_min=30.0), "must be above 0 and below beta_max = 20"),
    ],
)
def test_impossible_paths_and_times_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
