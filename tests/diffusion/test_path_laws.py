"""What a network predicts on every path of continuous time, and the densities and bounds there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion import losses, thresholds
from diffusion.forward import q_sample
from diffusion.grids import GRIDS
from diffusion.likelihood import prior_term
from diffusion.parameterizations import PARAMETERIZATIONS, WITH_OPTIONS
from diffusion.paths import PATHS, at, grid, place
from diffusion.probability_flow import likelihood, make_flow
from diffusion.reverse import make_denoise
from diffusion.schedules import from_levels
from diffusion.structs import Path
from tests.diffusion.gaussian import DEVIATION, MEAN, exact_variance, log_density, variational_bound
from tests.diffusion.gaussian import x_0_given_x_t as best
from tests.diffusion.on_paths import every_path, inside, network, process_of

ON_PATHS = {name: each for name, each in PARAMETERIZATIONS.items() if not each.predicts_mean}


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
