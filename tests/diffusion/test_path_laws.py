"""What holds on every path of continuous time: conversions, samplers, densities and bounds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion import losses, thresholds
from diffusion.forward import q_posterior, q_sample
from diffusion.grids import GRIDS, karras, log_snr, uniform
from diffusion.likelihood import prior_term
from diffusion.parameterizations import PARAMETERIZATIONS, WITH_OPTIONS
from diffusion.paths import PATHS, at, grid, levels_of, place
from diffusion.probability_flow import bind, likelihood, make_flow
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, from_betas, from_levels
from diffusion.structs import Levels, Parameterization, Path, Process
from diffusion.variances import VARIANCES
from diffusion.walk import begin, start, walk
from tests.diffusion.gaussian import DEVIATION, MEAN, exact_variance, log_density, variational_bound
from tests.diffusion.gaussian import x_0_given_x_t as best

every_path = pytest.mark.parametrize("path", [make() for make in PATHS.values()], ids=list(PATHS))
ON_PATHS = {name: each for name, each in PARAMETERIZATIONS.items() if not each.predicts_mean}
# Of N(MEAN, DEVIATION^2): the network hands x on, and the exact E[x_0 | x_t] is how it is read.
EXACT = Parameterization(
    lambda now, x_0, eps, x_t: x_t,
    lambda now, output, x_t: best(now, output)[0],
    predicts_mean=False,
    needs_signal=False,
)


def network(params: None, x_t: jax.Array, told: jax.Array) -> jax.Array:
    return x_t


def process_of(path: Path, levels: Levels, parameterization: Parameterization = EXACT) -> Process:
    return Process(from_levels(levels), parameterization, VARIANCES["fixed_small"], path)


def inside(path: Path, count: int = 40) -> np.ndarray:
    """u from near the start to near the end, where some signal is left."""
    return log_snr(path, count + 2)[1:-1]


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


# --- What a network predicts ---


@every_path
@pytest.mark.parametrize("name", ON_PATHS)
def test_decoding_the_target_gives_back_x_0_everywhere_on_a_path(name: str, path: Path) -> None:
    each = ON_PATHS[name]
    process = process_of(path, grid(path, inside(path, 5)), each)
    schedule = process.schedule
    if each.keeps_variance and not np.allclose(np.hypot(schedule.signal, schedule.noise), 1.0):
        with pytest.raises(ValueError, match=r"keep the variance.*Choose edm\(sigma_data=1\)"):
            make_denoise(network, process, threshold=thresholds.none)
        return
    if each.needs_signal and not path.signal(jnp.asarray(path.end)) > 0:
        with pytest.raises(ValueError, match=r"of which this path has none at its end.*Choose x_0"):
            make_denoise(network, process, threshold=thresholds.none)
    else:
        make_denoise(network, process, threshold=thresholds.none)
    with jax.enable_x64(True):
        now = at(path, jnp.asarray(inside(path))[:, None])
        x_0, eps = (jnp.linspace(*ends, 7) * jnp.ones((40, 1)) for ends in ((-1, 1), (2, -1.5)))
        x_t = now.signal * x_0 + now.noise * eps
        found = each.decode(now, each.target(now, x_0, eps, x_t), x_t)
        np.testing.assert_allclose(found, x_0, atol=1e-6)


@every_path
def test_velocity_is_the_derivative_of_x(path: Path) -> None:
    h = 1e-6 * path.end
    with jax.enable_x64(True):
        u = jnp.asarray(inside(path))
        x_0, eps = jnp.full_like(u, 0.7), jnp.full_like(u, -1.2)
        ahead, behind, now = (at(path, u + shift) for shift in (h, -h, 0.0))
        rise = (ahead.signal - behind.signal) * x_0 + (ahead.noise - behind.noise) * eps
        x_t = now.signal * x_0 + now.noise * eps
        found = PARAMETERIZATIONS["velocity"].target(now, x_0, eps, x_t)
        np.testing.assert_allclose(found, rise / (2 * h), rtol=1e-5, atol=1e-7)


@every_path
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edms_inputs_and_targets_have_variance_1(path: Path, sigma_data: float) -> None:
    """For data of that deviation, by the second moments of x_0 and eps."""
    each = WITH_OPTIONS["edm"](sigma_data)
    with jax.enable_x64(True):
        now = at(path, jnp.asarray(inside(path)))
        one, zero = jnp.ones_like(now.signal), jnp.zeros_like(now.signal)
        of_x_0, of_eps = each.target(now, one, zero, zero), each.target(now, zero, one, zero)
        np.testing.assert_allclose((sigma_data * of_x_0) ** 2 + of_eps**2, 1.0, rtol=1e-12)
        variance = (sigma_data * now.signal) ** 2 + now.noise**2
        assert each.scale_in is not None
        np.testing.assert_allclose(each.scale_in(now) ** 2 * variance, 1.0, rtol=1e-12)
        if sigma_data == 1.0:  # on the sphere of signal and noise it is -v
            length = jnp.hypot(now.signal, now.noise)
            sphere = now._replace(signal=now.signal / length, noise=now.noise / length)
            v = PARAMETERIZATIONS["v"].target(sphere, 0.3 * one, -0.8 * one, zero)
            found = each.target(now, 0.3 * one, -0.8 * one, zero)
            np.testing.assert_allclose(found, -v, rtol=1e-12)


def test_impossible_deviations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma_data = 0\.0 must be above 0"):
        WITH_OPTIONS["edm"](0.0)


@every_path
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_prediction_of_single_steps_is_refused_on_a_path(name: str, path: Path) -> None:
    process = process_of(path, grid(path, inside(path, 5)), PARAMETERIZATIONS[name])
    if not PARAMETERIZATIONS[name].predicts_mean:
        if PARAMETERIZATIONS[name].needs_path:
            with pytest.raises(ValueError, match=r"a chain does not have\. Choose mu or x_0 or"):
                make_denoise(network, process._replace(path=None), threshold=thresholds.none)
        return
    with pytest.raises(ValueError, match=r"of single steps of a chain.*Choose x_0 or eps or v"):
        make_denoise(network, process, threshold=thresholds.none)


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


# --- Densities and bounds ---


@every_path
def test_the_flow_of_gaussian_data_has_their_density(path: Path) -> None:
    """At the start of the path, under a prior that the end has but for the data's own trace."""
    process = process_of(path, grid(path, inside(path)))
    flow = make_flow(network, process)
    x = jnp.linspace(-1.5, 2.0, 8)[:, None]
    found = likelihood(flow, None, x, jax.random.split(jax.random.key(0), 8), num_probes=None)
    assert found.success.all()
    now = at(path, jnp.asarray([path.start, path.end]))
    means = np.asarray(now.signal, np.float64) * MEAN
    spreads = np.hypot(np.asarray(now.signal, np.float64) * DEVIATION, np.asarray(now.noise))
    # What the prior lacks is known too: x at the end is where the exact flow ends.
    x_end = means[1] + spreads[1] / spreads[0] * (np.asarray(x, np.float64)[:, 0] - means[0])
    prior = norm.logpdf(x_end, 0.0, path.deviation) + np.log(spreads[1] / spreads[0])
    np.testing.assert_allclose(found.log_density, prior, atol=5e-4)
    truth = norm.logpdf(np.asarray(x)[:, 0], means[0], spreads[0])
    np.testing.assert_allclose(found.log_density, truth, atol=0.15)


def density(x_0: jax.Array, p: Any) -> jax.Array:
    return log_density(x_0, p)


@every_path
def test_the_chain_of_a_path_is_a_tight_bound_with_the_true_reverse_step(path: Path) -> None:
    """-log p(x_0) of every x_0, in 20 steps as in any number (DDPM Eq. 5 on the path's levels)."""
    levels = grid(path, GRIDS[path.spacing](path, 20))
    process = process_of(path, levels)._replace(variance=exact_variance())
    denoise = make_denoise(network, process, threshold=thresholds.none)
    values, draws = jnp.array([-0.4, 0.3, 1.2]), 256
    x_0 = jnp.repeat(values, draws)[:, None] * jnp.ones(16)
    keys = jax.random.split(jax.random.key(1), 3 * draws)
    schedule = process.schedule
    result = jax.jit(
        lambda x, k: variational_bound(
            schedule, lambda x_t, t: denoise(None, x_t, t), x, k, decoder=density
        )
    )(x_0, keys)
    prior = prior_term(schedule, x_0, path.deviation)
    total = np.asarray(prior + result.terms.sum(0), np.float64).reshape(3, draws)
    error = total.std(axis=1) / np.sqrt(draws)
    truth = -norm.logpdf(np.asarray(values), MEAN, DEVIATION)
    assert (error < 0.06).all() and (abs(total.mean(axis=1) - truth) < 4 * error + 3e-3).all()


def bound_of_path(path: Path, shares: jax.Array, draws: int = 1000) -> float:
    """The bound's integral over u by the midpoint rule, in nats, of a network that is off."""
    u = path.start + (path.end - path.start) * shares
    process = process_of(path, grid(path, inside(path)), PARAMETERIZATIONS["x_0"])
    now = at(path, u)
    x_0 = MEAN + DEVIATION * jax.random.normal(jax.random.key(2), (draws, 1))
    eps = jax.random.normal(jax.random.key(3), (draws, 1))
    x_t = now.signal * x_0 + now.noise * eps
    off = jnp.mean(jnp.square(0.9 * best(now, x_t)[0] - x_0), axis=0)
    weight = losses.vlb_weight(process, now)
    return float((path.end - path.start) * jnp.mean(weight * off))


def test_the_bound_in_continuous_time_depends_on_the_ends_only() -> None:
    """VDM section 5.1: any path between the same two noise ratios (here within 1e-3)."""
    high, low = 6.0, -4.0
    linear = PATHS["linear_snr"](log_snr_min=low, log_snr_max=high)
    ends = np.exp([-high / 2, -low / 2])
    shares = (jnp.arange(2000) + 0.5) / 2000
    others = [PATHS["edm"](noise_min=float(ends[0]), noise_max=float(ends[1]))]
    for name in ("straight", "vp", "cosine"):
        path = PATHS[name]()
        with jax.enable_x64(True):
            start, end = np.asarray(place(path, jnp.asarray([high / 2, low / 2])))
        others.append(path._replace(start=float(start), end=float(end)))
    truth = bound_of_path(linear, shares)
    for path in others:
        assert bound_of_path(path, shares) == pytest.approx(truth, rel=1e-3)


@every_path
def test_the_bound_of_ever_more_steps_is_that_of_continuous_time(path: Path) -> None:
    """The chain's weight over the step's length in u tends to the path's, at the first order."""
    middle, errors = inside(path, 9)[4], []
    for length in (1e-2, 1e-3):
        u = middle * np.array([1.0 - length, 1.0])
        with jax.enable_x64(True):
            levels = grid(path, u)
            process = process_of(path, levels, PARAMETERIZATIONS["x_0"])
            row = jax.tree.map(lambda table: table[1], process.schedule)
            found = float(losses.vlb_weight(process, row)) / (u[1] - u[0])
            truth = float(losses.vlb_weight(process, at(path, jnp.asarray(middle))))
        errors.append(abs(found / truth - 1.0))
    assert errors[0] < 0.15 and errors[1] < 0.15 * errors[0] + 1e-4


@every_path
def test_what_a_path_noises_has_its_moments(path: Path) -> None:
    levels = grid(path, inside(path, 5))
    schedule = from_levels(levels)
    x_0, eps = jnp.ones((5, 1)), jnp.full((5, 1), 2.0)
    x_t = q_sample(schedule, x_0, jnp.arange(5), eps)[:, 0]
    np.testing.assert_allclose(x_t, levels.signal[1:] + 2.0 * levels.noise[1:], rtol=1e-6)
    # One step after the other comes to the same noise as all at once.
    variance = 0.0
    for t in range(5):
        variance = float(schedule.alpha[t]) * variance + float(schedule.beta[t])
        assert variance == pytest.approx(levels.noise[t + 1] ** 2, rel=1e-5)
