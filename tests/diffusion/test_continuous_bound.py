"""The bound of infinitely many steps: its closed form, what it is the limit of, and on what alone
it depends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion import thresholds
from diffusion.continuous_bound import ContinuousBound, continuous_bound, stratified
from diffusion.forward import fit
from diffusion.grids import karras
from diffusion.likelihood import bound_terms
from diffusion.paths import PATHS, at, grid, place
from diffusion.probability_flow import make_flow
from diffusion.reverse import make_denoise
from diffusion.schedules import from_levels
from diffusion.structs import Path, Prediction, Process
from diffusion.variances import VARIANCES
from tests.diffusion.gaussian import DEVIATION, MEAN, exact_variance, log_density
from tests.diffusion.on_paths import EXACT, every_path, network

CALM = 0.7  # x_0 where the error is a function of u alone


def whole(path: Path, num_steps: int = 20) -> Process:
    """A path with its chain, from the path's start on, and the exact reverse of Gaussian data."""
    return Process(from_levels(grid(path, karras(path, num_steps))), EXACT, exact_variance(), path)


def exact(process: Process, x_0: jax.Array, keys: jax.Array, num_strata: int) -> ContinuousBound:
    denoise = make_denoise(network, process, threshold=thresholds.none)
    flow = make_flow(network, process)
    return jax.jit(
        lambda x_0, keys: continuous_bound(
            process,
            lambda x_t, t: denoise(None, x_t, t),
            lambda x, u: flow.estimate(None, x, u),
            x_0,
            keys,
            num_strata=num_strata,
            decoder=log_density,
        )
    )(x_0, keys)


@every_path
def test_of_gaussian_data_with_the_exact_denoiser_it_is_their_density(path: Path) -> None:
    values, draws = jnp.array([-0.4, 0.3, 1.2]), 256
    x_0 = jnp.repeat(values, draws)[:, None] * jnp.ones(16)
    found = exact(whole(path), x_0, jax.random.split(jax.random.key(1), 3 * draws), 40)
    total = np.asarray(found.total, np.float64).reshape(3, draws)
    error = total.std(axis=1) / np.sqrt(draws)
    truth = -norm.logpdf(np.asarray(values), MEAN, DEVIATION)
    assert (error < 0.06).all() and (abs(total.mean(axis=1) - truth) < 4 * error + 3e-3).all()


def calm_error(ratio: jax.Array) -> jax.Array:
    """How far an estimate is off that has no noise in it, by noise / signal."""
    return 0.3 * ratio / (1.0 + ratio)


def divergence_of_chain(path: Path, num_steps: int) -> float:
    """The sum of a chain's divergences where the network is off by `calm_error`."""
    schedule = from_levels(grid(path, karras(path, num_steps)))

    def denoise(x_t: jax.Array, t: jax.Array) -> Prediction:
        now = fit(jax.tree.map(lambda table: table[t], schedule), x_t)
        x_0 = CALM + calm_error(now.noise / now.signal) * jnp.ones_like(x_t)
        mean = now.posterior_mean_x_0 * x_0 + now.posterior_mean_x_t * x_t
        return Prediction(x_0, x_t, mean, now.posterior_log_variance)

    t = jnp.arange(1, num_steps)[:, None]
    keys = jax.random.split(jax.random.key(0), 1)
    terms = bound_terms(schedule, denoise, jnp.full((1, 1), CALM), keys, t)
    return float(np.asarray(terms.nats, np.float64).sum())


def calm(path: Path, num_strata: int) -> ContinuousBound:
    process = whole(path)._replace(variance=VARIANCES["fixed_small"])

    def estimate(x: jax.Array, u: jax.Array) -> jax.Array:
        now = fit(at(path, u), x)
        return CALM + calm_error(now.noise / now.signal) * jnp.ones_like(x)

    denoise = make_denoise(network, process, threshold=thresholds.none)
    return continuous_bound(
        process,
        lambda x_t, t: denoise(None, x_t, t),
        estimate,
        jnp.full((16, 1), CALM),
        jax.random.split(jax.random.key(3), 16),
        num_strata=num_strata,
        decoder=log_density,
    )


@every_path
def test_it_is_the_limit_of_ever_more_steps_at_the_first_order(path: Path) -> None:
    limit = float(np.asarray(calm(path, 2000).divergence).mean())
    numbers = (240, 480, 960)
    errors = [divergence_of_chain(path, number) - limit for number in numbers]
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert 0.95 < slope < 1.1 and errors[-1] < 0.05 * limit, (limit, errors)


def between(high: float, low: float) -> list[Path]:
    """Every path from one log SNR to another."""
    found = []
    for make in PATHS.values():
        path = make()
        with jax.enable_x64(True):
            start, end = np.asarray(place(path, jnp.asarray([high / 2, low / 2])))
        found.append(path._replace(start=float(start), end=float(end)))
    return found


def test_it_depends_on_the_ends_of_the_path_only() -> None:
    """VDM section 5.1, for a network that reads the noise ratio, draw by draw."""
    x_0 = MEAN + DEVIATION * jax.random.normal(jax.random.key(2), (8, 4))
    keys = jax.random.split(jax.random.key(5), 8)
    first, *others = (exact(whole(path), x_0, keys, 30) for path in between(6.0, -4.5))
    for other in others:
        np.testing.assert_allclose(other.divergence, first.divergence, rtol=2e-3)
        np.testing.assert_allclose(other.decoder, first.decoder, rtol=1e-4)
    [further] = (exact(whole(path), x_0, keys, 30) for path in between(7.0, -4.5)[:1])
    assert abs(further.divergence / first.divergence - 1).min() > 0.02


@every_path
def test_the_value_of_an_example_does_not_depend_on_its_batch(path: Path) -> None:
    x_0 = jax.random.normal(jax.random.key(2), (5, 4))
    keys = jax.random.split(jax.random.key(5), 5)
    together, apart = exact(whole(path), x_0, keys, 7), exact(whole(path), x_0[3:4], keys[3:4], 7)
    for ours, alone in zip(together, apart, strict=True):
        np.testing.assert_allclose(ours[3:4], alone, rtol=1e-5)


@every_path
def test_every_part_of_a_path_has_one_u(path: Path) -> None:
    u = stratified(path, jax.random.split(jax.random.key(0), 50), 8)
    assert u.shape == (8, 50) and u.dtype == jnp.float32
    assert (u.max(axis=1)[:-1] <= u.min(axis=1)[1:]).all()
    assert (u >= path.start * (1 - 1e-6)).all() and (u <= path.end * (1 + 1e-6)).all()
    few = stratified(path, jax.random.split(jax.random.key(0), 4000), 1)[0]
    reach = path.start + (path.end - path.start) * np.array([0.01, 0.99])
    assert few.min() < reach[0] or few.max() > reach[1]


def test_a_chain_and_no_points_at_all_are_refused() -> None:
    process, x_0 = whole(PATHS["vp"]()), jnp.zeros((1, 1))
    keys = jax.random.split(jax.random.key(0), 1)

    def nothing(*arguments: jax.Array) -> Prediction:
        raise AssertionError

    ask: Callable = nothing
    with pytest.raises(ValueError, match=r"a chain has its own number of steps\. Choose"):
        continuous_bound(process._replace(path=None), ask, ask, x_0, keys, num_strata=1)
    with pytest.raises(ValueError, match="num_strata = 0 must be 1 or more"):
        continuous_bound(process, ask, ask, x_0, keys, num_strata=0)
