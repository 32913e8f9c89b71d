"""Where walks along a path stop, and what every sampler does on every path."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import q_posterior
from diffusion.grids import GRIDS, karras, log_snr, uniform
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import PATHS, grid, levels_of, place
from diffusion.probability_flow import bind, make_flow
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, from_betas, from_levels
from diffusion.structs import Levels, Parameterization, Path
from diffusion.walk import begin, start, walk
from tests.diffusion.gaussian import DEVIATION, MEAN
from tests.diffusion.on_paths import EXACT, every_path, inside, network, process_of


def drawn(
    name: str,
    path: Path,
    levels: Levels,
    x_T: jax.Array,
    apply: Any = network,
    parameterization: Parameterization = EXACT,
    **options: Any,
) -> np.ndarray:
    """Where a sampler ends on these levels, with the same noise whenever it takes some."""
    process, sampler = process_of(path, levels, parameterization), SAMPLERS[name](levels, **options)
    model: Any = functools.partial(make_denoise(apply, process, threshold=thresholds.none), None)
    if sampler.continuous:
        model = bind(make_flow(apply, process), None, {})
    keys = jax.random.split(jax.random.key(0), len(x_T))
    run = jax.jit(lambda x: walk(sampler, model, keys, start(sampler, x, 0)).x_t)
    return np.asarray(run(x_T), np.float64)


# --- Where walks stop ---


@every_path
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_rises_within_its_path(name: str, path: Path) -> None:
    for steps in (1, 2, 7, 1000):
        u = GRIDS[name](path, steps)
        assert u.shape == (steps,) and u.dtype == np.float64 and (np.diff(u) > 0).all()
        assert u[0] >= path.start * (1 - 1e-12) and u[-1] <= path.end * (1 + 1e-12)
        levels = grid(path, u)
        assert np.isfinite(levels.variance).all() and np.isfinite(levels.signal).all()
    with pytest.raises(ValueError, match="num_steps = 0 is not possible"):
        GRIDS[name](path, 0)


def test_karras_is_equation_5_and_log_snr_is_even() -> None:
    path, n, rho = PATHS["edm"](), 18, 7.0
    i = np.arange(n)
    root = 80.0 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))
    np.testing.assert_allclose(karras(path, n)[::-1], root**rho, rtol=1e-9)
    with pytest.raises(ValueError, match="rho = 0 must be above 0"):
        karras(path, n, rho=0)
    for each in (PATHS["cosine"](), PATHS["straight"](), PATHS["vp"]()):
        rises = np.diff(grid(each, log_snr(each, 9)).log_ratio[1:])
        np.testing.assert_allclose(rises, rises[0], rtol=1e-6)


@every_path
def test_a_place_is_where_it_has_that_ratio(path: Path) -> None:
    u = inside(path)
    with jax.enable_x64(True):
        found = place(path, jnp.asarray(grid(path, u).log_ratio[1:]))
        np.testing.assert_allclose(found, u, rtol=1e-9)
        beyond = place(path, jnp.asarray([1e3, -1e3]))
    np.testing.assert_allclose(beyond, [path.start, path.end], atol=1e-12)


# --- Samplers ---


def test_straight_paths_under_eulers_method_are_ddim() -> None:
    """For any network."""
    path, x_T = PATHS["straight"](), jnp.linspace(-2.0, 2.0, 9)[:, None]
    levels = grid(path, uniform(path, 12))

    def apply(params: None, x_t: jax.Array, told: jax.Array) -> jax.Array:
        return jnp.sin(3.0 * x_t) - 0.3 * told[:, None] / 1000.0

    each = PARAMETERIZATIONS["velocity"]
    euler, ddim = (drawn(name, path, levels, x_T, apply, each) for name in ("euler", "ddim"))
    np.testing.assert_allclose(euler, ddim, atol=2e-6)
    curved = grid(PATHS["cosine"](), uniform(PATHS["cosine"](), 12))
    euler, ddim = (
        drawn(name, PATHS["cosine"](), curved, x_T, apply, each) for name in ("euler", "ddim")
    )
    assert abs(euler - ddim).max() > 1e-3


COSINE = grid(PATHS["cosine"](), inside(PATHS["cosine"](), 8))
FLAGS = {name: make(COSINE) for name, make in SAMPLERS.items()}
OF_RATIOS = [name for name, each in FLAGS.items() if not (each.needs_path or each.adaptive)]


@every_path
@pytest.mark.parametrize("name", OF_RATIOS)
def test_at_the_same_noise_ratios_a_walk_is_the_same_on_every_path(name: str, path: Path) -> None:
    """Up to x's scale, for a network that is told the ratio (the normal form of a path)."""
    common = np.linspace(2.0, -1.0, 12)  # log(signal / noise), from the start on
    vp = PATHS["vp"]()
    z_T = jnp.linspace(-2.0, 2.0, 9)[:, None]

    def decode(now: Any, output: jax.Array, x_t: jax.Array) -> jax.Array:
        scaled = x_t / jnp.sqrt(now.signal**2 + now.noise**2)
        return jnp.tanh(2.0 * scaled * now.signal / now.noise)

    each = EXACT._replace(decode=decode)

    def ended(on: Path) -> np.ndarray:
        with jax.enable_x64(True):
            u = np.asarray(place(on, jnp.asarray(common)))
        levels = grid(on, u)
        length = np.hypot(levels.signal[-1], levels.noise[-1])
        return drawn(name, on, levels, jnp.float32(length) * z_T, parameterization=each)

    np.testing.assert_allclose(ended(path), ended(vp), atol=1e-4)


def exact_end(levels: Levels, x_T: np.ndarray) -> np.ndarray:
    """Where the flow of N(MEAN, DEVIATION^2) comes to, and the estimate of x_0 there."""
    signal, noise = levels.signal[1:], levels.noise[1:]
    spread = np.hypot(signal * DEVIATION, noise)
    first = signal[0] * MEAN + spread[0] / spread[-1] * (x_T - signal[-1] * MEAN)
    return MEAN + DEVIATION**2 * signal[0] / spread[0] ** 2 * (first - signal[0] * MEAN)


SOLVERS = {
    name: each.order
    for name, each in FLAGS.items()
    if each.order and not (each.stochastic or each.adaptive)
}


@every_path
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_its_order_on_every_path(name: str, path: Path) -> None:
    """Fitted on evenly spaced log(signal / noise), in float64; multistep ones start lower."""
    errors, numbers = [], (32, 56, 96)
    with jax.enable_x64(True):
        bottom = float(grid(path, inside(path, 500)).log_ratio[-1])
        for number in numbers:
            u = np.asarray(place(path, jnp.linspace(3.0, max(-4.5, bottom), number)))
            levels = grid(path, u)
            scale = float(np.hypot(levels.signal[-1], levels.noise[-1]))
            x_T = scale * jnp.linspace(-2.0, 2.0, 9)[:, None]
            found = drawn(name, path, levels, x_T)
            errors.append(abs(found - exact_end(levels, np.asarray(x_T))).max())
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    order = SOLVERS[name]
    assert slope > 0.78 * order and (slope < order + 0.8 or slope > 1.9), (slope, errors)


@every_path
def test_churn_of_nothing_is_heun(path: Path) -> None:
    levels = grid(path, np.asarray(inside(path, 12)))
    x_T = jnp.linspace(-2.0, 2.0, 9)[:, None] * float(levels.noise[-1])
    quiet = drawn("heun_churn", path, levels, x_T, churn=0.0)
    np.testing.assert_allclose(quiet, drawn("heun", path, levels, x_T), atol=1e-4)


@pytest.mark.parametrize("options", [{"churn": -1.0}, {"churn_min": 2.0, "churn_max": 1.0}])
def test_impossible_churn_is_refused(options: dict) -> None:
    path = PATHS["edm"]()
    with pytest.raises(ValueError, match="must be at least 0, and churn_max at least churn_min"):
        SAMPLERS["heun_churn"](grid(path, inside(path)), **options)


@every_path
def test_a_walk_from_the_paths_own_end_has_the_datas_moments(path: Path) -> None:
    """By the flow, which forgets nothing of where it begins."""
    levels = grid(path, log_snr(path, 60))
    process, sampler = process_of(path, levels), SAMPLERS["heun"](levels)
    denoise = functools.partial(make_denoise(network, process, threshold=thresholds.none), None)

    @jax.jit
    def sample(keys: jax.Array) -> jax.Array:
        first = begin(sampler, keys, (16,), 0, path.deviation)
        return walk(sampler, denoise, keys, first).x_t

    x = np.asarray(sample(jax.random.split(jax.random.key(7), 1000)), np.float64)
    trace = 0.2 * float(levels.signal[-1])  # of the data at the end, which the prior lacks
    assert x.mean() == pytest.approx(MEAN, abs=4 * DEVIATION / np.sqrt(x.size) + trace)
    assert x.std() / DEVIATION == pytest.approx(1.0, abs=4 * np.sqrt(0.5 / x.size) + trace + 5e-3)


@every_path
def test_one_step_back_on_a_path_is_bayes_rule(path: Path) -> None:
    """q(x_{t-1} | x_t, x_0) from the joint Gaussian of both given x_0."""
    levels = grid(path, inside(path, 6))
    schedule = from_levels(levels)
    for t in range(1, 6):
        before, now = t, t + 1  # entries of levels
        covariance = levels.signal[now] / levels.signal[before] * levels.noise[before] ** 2
        gain = covariance / levels.noise[now] ** 2
        x_0, x_t = 0.4, -0.8
        mean = levels.signal[before] * x_0 + gain * (x_t - levels.signal[now] * x_0)
        row = jax.tree.map(lambda table, t=t: table[t], schedule)
        found = q_posterior(row, jnp.array([x_0]), jnp.array([x_t]))
        assert found.mean.item() == pytest.approx(mean, rel=2e-5, abs=1e-6)
        variance = levels.noise[before] ** 2 - gain * covariance
        assert np.exp(found.log_variance) == pytest.approx(variance, rel=1e-4)


def test_the_levels_of_a_chain_have_its_tables() -> None:
    chain = from_betas(BETAS["linear"](200, 1e-3, 0.1))
    found = from_levels(levels_of(chain))
    for name, table in chain._asdict().items():
        if table is not None:
            other = getattr(found, name)
            np.testing.assert_allclose(other, table, rtol=2e-5, atol=1e-7, err_msg=name)
