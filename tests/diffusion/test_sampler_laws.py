"""What every sampler must do, on data whose best denoiser is known.

The tests run over SAMPLERS and read what its entries say of themselves.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from diffusion import thresholds
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import check_signal, grid, levels_of, row, through
from diffusion.probability_flow import make_flow
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS, annealed_langevin, ddim, ddim_encode
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import uniform
from diffusion.structs import Levels, Process, Sampler, Step, Variance
from diffusion.variances import VARIANCES
from diffusion.walk import Samples, end, start, walk
from tests.diffusion import gaussian, mixture
from tests.diffusion.mixture import Mixture
from tests.diffusion.walks import model_of

T = 1000
BETA = BETAS["linear"](T)
LINEAR = from_betas(BETA)
FEW, MANY = 6, 400  # steps
SHORT = respace(BETA, uniform(T, FEW))
PATH = through(LINEAR)  # of which the chain is the levels at the integers
EXAMPLES, VALUES = 250, 16  # of a batch, and of an example, each a draw of its own
COUNT = EXAMPLES * VALUES
NOISE = ndtri((np.arange(COUNT) + 0.5) / COUNT).reshape(VALUES, EXAMPLES).T  # N(0, 1), evenly
NETWORK = mixture.best_network(LINEAR)


def levels_at(steps: int) -> Levels:
    """As many levels of the chain, which samplers in continuous time take too."""
    return grid(PATH, uniform(T, steps).astype(float))


every_sampler = pytest.mark.parametrize("name", SAMPLERS)
deterministic_sampler = pytest.mark.parametrize(
    "name", [name for name in SAMPLERS if not SAMPLERS[name](levels_at(FEW)).stochastic]
)


class Walker(NamedTuple):
    """A sampler on a chain of some steps.

    run: (x_T, seed, data, log of a factor to the model's variance) -> Samples.
    """

    sampler: Sampler
    run: Callable[..., Samples]


@functools.cache
def walker(make: Callable[[Levels], Sampler], steps: int) -> Walker:
    """Compiled once for all tests."""
    chain = respace(BETA, uniform(T, steps))
    sampler = make(levels_at(steps))

    @jax.jit
    def drawn(x_T: jax.Array, keys: jax.Array, data: Mixture, wider: jax.Array) -> Samples:
        variance = Variance(0, lambda now, extra, x_t: now.posterior_log_variance + wider)
        model = model_of(sampler, NETWORK, data, LINEAR, chain, variance)
        return end(walk(sampler, model, keys, start(sampler, x_T, 0)))

    def run(
        x_T: np.ndarray, seed: int = 0, data: Mixture = mixture.DATA, wider: float = 0.0
    ) -> Samples:
        keys = jax.random.split(jax.random.key(seed), len(x_T))
        means, weights = (np.broadcast_to(x, (VALUES, 2)) for x in (data.means, data.weights))
        arrays = x_T, Mixture(means, weights, data.deviation), wider
        x_T, data, wider = jax.tree.map(jnp.float32, arrays)
        return drawn(x_T, keys, data, wider)

    return Walker(sampler, run)


@every_sampler
def test_of_a_known_x_0_it_ends_there(name: str) -> None:
    x_0 = np.linspace(-0.9, 0.9, VALUES)
    known = Mixture(np.stack([x_0, x_0], axis=-1), deviation=0.0)
    found = walker(SAMPLERS[name], FEW).run(NOISE, data=known)
    np.testing.assert_allclose(found.x_0, np.broadcast_to(x_0, NOISE.shape), atol=1e-5)


# Of N steps, and of the options that are the defaults, as docs/samplers.md has them.
EVALUATIONS = {
    **dict.fromkeys(("ancestral", "ddim", "dpm_solver_pp", "unipc"), FEW),
    **{"heun": 2 * FEW - 1, "annealed_langevin": 5 * FEW + 1, "predictor_corrector": 2 * FEW - 1},
}


@every_sampler
def test_evaluations_are_counted(name: str) -> None:
    """By a network that says each time it is called."""
    calls = []

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: calls.append(1), x_t[0, 0], ordered=False)
        return 0.5 * x_t

    sampler = SAMPLERS[name](levels_at(FEW))
    model = model_of(sampler, apply, None, LINEAR, SHORT)
    keys = jax.random.split(jax.random.key(0), 1)
    run = jax.jit(lambda x_T: walk(sampler, model, keys, start(sampler, x_T, 0)))
    evaluations = run(jnp.ones((1, 1))).evaluations
    jax.effects_barrier()
    assert sampler.num_steps == FEW and len(calls) >= FEW
    if sampler.adaptive:  # a solver under vmap is called once more where it has ended
        assert len(calls) == pytest.approx(int(evaluations[0]), abs=2)
    else:
        assert evaluations.tolist() == [len(calls)] == [EVALUATIONS.get(name, len(calls))]


@every_sampler
def test_whether_noise_matters_is_as_it_says(name: str) -> None:
    sampler, run = walker(SAMPLERS[name], FEW)
    one, two = (run(NOISE, seed).x_0 for seed in (0, 1))
    assert bool((one == two).all()) != sampler.stochastic


@every_sampler
def test_whether_the_models_variance_matters_is_as_it_says(name: str) -> None:
    sampler, run = walker(SAMPLERS[name], FEW)
    one, two = (run(NOISE, wider=wider).x_0 for wider in (0.0, 1.0))
    assert bool((one != two).any()) == sampler.uses_variance


@every_sampler
def test_it_draws_the_data(name: str) -> None:
    """The largest difference of the distribution functions falls to that of as many true draws.

    Where x_T alone decides, and lies evenly, there is none but that of the steps.
    """
    sampler, _ = walker(SAMPLERS[name], FEW)
    by_chance = 0.0 if not sampler.stochastic else 1.63 / np.sqrt(COUNT)  # exceeded once in 100

    @functools.cache
    def distance(steps: int) -> float:
        x = np.sort(np.asarray(walker(SAMPLERS[name], steps).run(NOISE).x_0, np.float64).ravel())
        ranks = (np.arange(COUNT) + 0.5) / COUNT
        return float(abs(mixture.cumulative(x) - ranks).max())

    if sampler.adaptive:  # it chooses its steps by itself
        assert distance(FEW) < by_chance + 0.005
    else:
        steps = MANY if distance(MANY) < by_chance + 0.005 else T
        assert distance(steps) < by_chance + 0.005 and distance(FEW) > 5 * distance(steps)


def exact_flow(x_T: np.ndarray) -> np.ndarray:
    """Where the probability flow of Gaussian data ends: the estimate at the first timestep."""
    root, sigma = levels_of(LINEAR).signal[1:], levels_of(LINEAR).noise[1:]
    spread = np.sqrt(root**2 * gaussian.DEVIATION**2 + sigma**2)
    first = root[0] * gaussian.MEAN + spread[0] / spread[-1] * (x_T - root[-1] * gaussian.MEAN)
    gain = gaussian.DEVIATION**2 * root[0] / spread[0] ** 2
    return gaussian.MEAN + gain * (first - root[0] * gaussian.MEAN)


@deterministic_sampler
def test_it_ends_where_the_flow_of_gaussian_data_does(name: str) -> None:
    """With an error that falls at the first order or faster."""
    data, truth = Mixture((gaussian.MEAN,) * 2, deviation=gaussian.DEVIATION), exact_flow(NOISE)

    def error(steps: int) -> float:
        found = walker(SAMPLERS[name], steps).run(NOISE, data=data).x_0
        return float(abs(found - truth)[abs(NOISE) <= 2.5].max())

    sampler, many = walker(SAMPLERS[name], FEW).sampler, 500
    assert sampler.order >= 1
    bound = 1e-3 if sampler.order > 1 else 1e-2
    if sampler.adaptive:
        assert error(FEW) < bound
    else:  # from 50 steps on, at which all of them have begun to fall
        assert error(many) < min(bound, 1.5 * 50 / many * error(50))


def test_ddim_of_eta_1_is_ancestral_with_the_small_variance() -> None:
    noisy = functools.partial(ddim, eta=1.0)
    one, other = (walker(make, FEW).run(NOISE).x_0 for make in (noisy, SAMPLERS["ancestral"]))
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert float(abs(walker(ddim, FEW).run(NOISE).x_0 - other).max()) > 0.01
    assert noisy(levels_of(LINEAR)).stochastic


def test_what_ddim_encodes_it_decodes() -> None:
    """With an error that falls as the steps grow, at the first order or faster."""
    x_0 = mixture.draw(jax.random.key(5), NOISE.shape)

    def error(steps: int) -> float:
        chain = respace(BETA, uniform(T, steps))
        denoise = model_of(ddim(levels_of(chain)), NETWORK, mixture.DATA, LINEAR, chain)
        x_T = jax.jit(lambda x: ddim_encode(levels_of(chain), denoise, x))(x_0)
        assert 0.5 < float(x_T.std()) < 1.5
        return float(abs(walker(ddim, steps).run(x_T).x_0 - x_0).mean())

    assert error(MANY) < min(0.01, 1.5 * FEW / MANY * error(FEW))


@pytest.mark.parametrize("step_size", [0.02, 0.2])
def test_langevin_ends_in_the_marginal_of_its_level(step_size: float) -> None:
    """Of Gaussian data its variance is known: that of the marginal V over 1 - step / (2 V)."""
    chain = respace(BETA, [400])
    apply = gaussian.best_network(LINEAR, PARAMETERIZATIONS["x_0"])
    sampler = annealed_langevin(
        levels_of(chain), steps_per_level=int(12 / step_size), step_size=step_size
    )
    n = 10_000
    state = start(sampler, jnp.full((8, n // 8), 3.0), 0)
    denoise = model_of(sampler, apply, None, LINEAR, chain)
    keys = jax.random.split(jax.random.key(6), 8)
    run = jax.jit(lambda state: walk(sampler, denoise, keys, state).x_t)
    x_0 = np.asarray(run(state), np.float64)
    # The last estimate of x_0 is affine in x; turned back, it is the law of x.
    root, noise = float(LINEAR.signal[400]), float(LINEAR.noise_variance[400])
    marginal = root**2 * gaussian.DEVIATION**2 + noise
    gain = gaussian.DEVIATION**2 * root / marginal
    x = root * gaussian.MEAN + (x_0 - gaussian.MEAN) / gain
    stationary = marginal / (1 - step_size * noise / (2 * marginal))
    assert x.mean() == pytest.approx(root * gaussian.MEAN, abs=4 * np.sqrt(stationary / n))
    assert x.var() == pytest.approx(stationary, rel=4 * np.sqrt(2 / n))
    if step_size == 0.2:  # the bias can be told
        assert abs(x.var() - marginal) > 4 * np.sqrt(2 / n) * marginal


@every_sampler
def test_a_chain_that_ends_in_noise_is_walked_or_refused_by_name(name: str) -> None:
    chain = from_betas(BETAS["jsd"](20))
    process = Process(chain, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"])

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return 0.5 * x_t

    flags = SAMPLERS[name](levels_at(FEW))
    needs_signal = flags.needs_signal
    if flags.needs_path:
        with pytest.raises(ValueError, match=f"{name}' takes steps in continuous.*Choose ddim"):
            SAMPLERS[name](levels_of(chain))
        return
    try:
        sampler = SAMPLERS[name](levels_of(chain))
    except ValueError as refusal:
        assert needs_signal
        advised = ("ancestral", "ddim")
        assert f"{name!r} needs some signal" in str(refusal) and name not in advised
        assert f"ends in pure noise (its last beta is 1). Choose {' or '.join(advised)}" in str(
            refusal
        )
        return
    assert not needs_signal
    if sampler.continuous:  # what it asks is refused
        with pytest.raises(ValueError, match="ends in pure noise"):
            make_flow(apply, process)
        return
    denoise = functools.partial(make_denoise(apply, process, threshold=thresholds.clip), None)
    keys, x_T = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 2))
    found = walk(sampler, denoise, keys, start(sampler, x_T, 0)).x_t
    assert np.isfinite(found).all() and abs(found).max() <= 1


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ddim", {"eta": 1.5}, "eta = 1.5 must lie between 0"),
        ("dpm_solver_pp", {"order": 1}, "must be 2 .2M. or 3"),
        ("unipc", {"order": 4}, "order = 4 of unipc must be 1, 2 or 3"),
        ("annealed_langevin", {"step_size": 1.0}, "step_size = 1.0 must lie between 0 and 1"),
        ("predictor_corrector", {"step_size": 0.0}, "step_size = 0.0 must lie between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SAMPLERS[name](levels_of(LINEAR), **options)


# --- A sampler that is added ---


def euler_ancestral(levels: Levels, /, noise_scale: float = 1.0) -> Sampler:
    """Euler's step from s = sigma / alpha down to s_down, then noise of deviation s_up.

    For x / alpha, with s_up^2 = s'^2 (s^2 - s'^2) / s^2 and s_down^2 = s'^2 - s_up^2.
    """
    check_signal(levels, "added")
    s, alpha = levels.noise / levels.signal, levels.signal
    up = s[:-1] * np.sqrt(1.0 - (s[:-1] / s[1:]) ** 2)
    rise = np.sqrt(s[:-1] ** 2 - up**2) - s[1:]
    table = np.stack([alpha[:-1] / alpha[1:], alpha[:-1] * rise, alpha[:-1] * up], axis=1)

    def step(denoise: Any, x_t: jax.Array, t: jax.Array, noise: Any, memory: Any) -> Step:
        prediction = denoise(x_t, t)
        ratio, rise, deviation = row(table, t, x_t)
        x = ratio * x_t + rise * prediction.eps + noise_scale * deviation * noise(0)
        return Step(jnp.where(t > 0, x, prediction.x_0), prediction.x_0, memory)

    return Sampler(levels.num_steps, lambda x_T: (), step, stochastic=True, needs_signal=True)


def lying(levels: Levels, /) -> Sampler:
    """The same, which says of itself what is not so."""
    sampler = euler_ancestral(levels)

    def step(*arguments: Any) -> Step:
        return sampler.step(*arguments)._replace(evaluations=2)

    return sampler._replace(step=step, stochastic=False, uses_variance=True)


def test_the_laws_hold_of_a_sampler_that_is_added_and_of_no_wrong_one(monkeypatch) -> None:
    def added(make: Callable[[Levels], Sampler]) -> str:
        monkeypatch.setattr(sys.modules[__name__], "SAMPLERS", {**SAMPLERS, "added": make})
        return "added"

    name = added(euler_ancestral)
    told = (
        test_evaluations_are_counted,
        test_whether_noise_matters_is_as_it_says,
        test_whether_the_models_variance_matters_is_as_it_says,
    )
    for law in (*told, test_of_a_known_x_0_it_ends_there, test_it_draws_the_data):
        law(name)
    test_a_chain_that_ends_in_noise_is_walked_or_refused_by_name(name)
    name = added(lying)
    for law in told:
        with pytest.raises(AssertionError):
            law(name)
    name = added(functools.partial(euler_ancestral, noise_scale=0.8))
    with pytest.raises(AssertionError):
        test_it_draws_the_data(name)
