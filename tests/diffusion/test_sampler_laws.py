"""What every sampler must do, on data whose best denoiser is known."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import at
from diffusion.levels import levels_of
from diffusion.multistep import dpm_weights, unipc_weights
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.probability_flow import bind, make_flow
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS, ancestral, annealed_langevin, ddim, ddim_encode
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import uniform
from diffusion.structs import Process, Sampler, Schedule
from diffusion.variances import VARIANCES
from diffusion.walk import begin, end, start, walk
from tests.diffusion import gaussian, mixture

T = 1000
BETA = BETAS["linear"](T)
LINEAR = from_betas(BETA)
DETERMINISTIC = {
    "ddim": {},
    "heun": {},
    "dpm_solver_pp": {},
    "unipc": {},
    "flow": {"tolerance": 1e-5},
}
STOCHASTIC = [name for name in SAMPLERS if name not in DETERMINISTIC]


def model_of(sampler: Sampler, apply: Any, chain: Schedule, name: str = "x_0") -> Any:
    """What the sampler asks of a network on the 1000 timesteps."""
    process = Process(LINEAR, PARAMETERIZATIONS[name], VARIANCES["fixed_small"])
    if sampler.continuous:
        return bind(make_flow(apply, process), None, {})
    process = process._replace(schedule=chain)
    return functools.partial(make_denoise(apply, process, threshold=thresholds.none), None)


def run(name: str, apply: Any, steps: int, keys: Any, shape: Any = (1,), x_T=None, **options):
    chain = respace(BETA, uniform(T, steps))
    sampler = SAMPLERS[name](chain, **options)
    model = model_of(sampler, apply, chain)

    @jax.jit
    def drawn(keys, x_T):
        state = begin(sampler, keys, shape, 0) if x_T is None else start(sampler, x_T, 0)
        return end(walk(sampler, model, keys, state))

    return drawn(keys, x_T)


@pytest.mark.parametrize("name", SAMPLERS)
def test_of_a_known_x_0_it_ends_there(name: str) -> None:
    x_0 = jnp.linspace(-0.9, 0.9, 5)

    def apply(params, x_t, t):
        return jnp.broadcast_to(x_0, x_t.shape)

    found = run(name, apply, 20, jax.random.split(jax.random.key(0), 3), (5,))
    np.testing.assert_allclose(found.x_0, jnp.broadcast_to(x_0, (3, 5)), atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_are_counted(name: str) -> None:
    """By a network that says each time it is called."""
    calls = []

    def apply(params, x_t, t):
        jax.debug.callback(lambda _: calls.append(1), x_t[0, 0], ordered=False)
        return 0.5 * x_t

    found = run(name, apply, 6, jax.random.split(jax.random.key(0), 1))
    jax.effects_barrier()
    expected = {"heun": 11, "annealed_langevin": 31, "predictor_corrector": 11}
    if name == "flow":  # some steps are taken, and vmapped calls come one by one
        assert len(calls) == pytest.approx(int(found.evaluations[0]), abs=2)
        assert found.evaluations[0] > 30
    else:
        assert found.evaluations.tolist() == [len(calls)] == [expected.get(name, 6)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_whether_noise_matters_is_as_it_says(name: str) -> None:
    x_T = jax.random.normal(jax.random.key(1), (4, 2))
    apply = mixture.best_network(LINEAR)
    options = DETERMINISTIC.get(name, {})
    one, two = (
        run(name, apply, 10, jax.random.split(jax.random.key(seed), 4), x_T=x_T, **options).x_0
        for seed in (0, 1)
    )
    assert bool((one == two).all()) == (name in DETERMINISTIC)


DISTANCE = {"annealed_langevin": 0.06}  # its steps have a size, and so its law has a bias


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_draws_the_data(name: str) -> None:
    """The largest difference of the distribution functions falls to that of as many true draws."""
    n = 4000
    keys = jax.random.split(jax.random.key(3), n)
    apply = mixture.best_network(LINEAR)
    many = {"annealed_langevin": 200, "predictor_corrector": 300, "ancestral": 500}.get(name, 100)

    def distance(steps: int) -> float:
        found = run(name, apply, steps, keys, **DETERMINISTIC.get(name, {})).x_0
        x = np.sort(np.asarray(found, np.float64)[:, 0])
        ranks = (np.arange(n) + 0.5) / n
        return float(abs(mixture.cumulative(x) - ranks).max())

    fine = distance(many)
    assert fine < DISTANCE.get(name, 1.6 / np.sqrt(n) + 0.005)  # 1.63: exceeded once in 100
    if name != "flow":  # which chooses its steps by itself
        assert distance(6) > 1.5 * fine


class _Now(NamedTuple):
    """The coefficients that `gaussian` looks at."""

    sqrt_alpha_bar: jax.Array
    one_minus_alpha_bar: jax.Array


def exact_flow(x_T: np.ndarray) -> np.ndarray:
    """Where the probability flow of Gaussian data ends: the estimate at the first timestep."""
    root, sigma = levels_of(LINEAR).alpha[1:], levels_of(LINEAR).sigma[1:]
    spread = np.sqrt(root**2 * gaussian.DEVIATION**2 + sigma**2)
    first = root[0] * gaussian.MEAN + spread[0] / spread[-1] * (x_T - root[-1] * gaussian.MEAN)
    gain = gaussian.DEVIATION**2 * root[0] / spread[0] ** 2
    return gaussian.MEAN + gain * (first - root[0] * gaussian.MEAN)


FINE = 32_768  # timesteps of a chain on which steps of any length are to be had
# name, options, order of the error in the number of steps. UniPC's corrector adds one; 3M as it is
# run everywhere has the second order.
ORDERS = [
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("dpm_solver_pp", {"order": 2}, 2),
    ("dpm_solver_pp", {"order": 3}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 3}, 4),
]


@pytest.fixture(scope="module")
def fine_errors() -> Any:
    """(name, options, numbers of steps) -> mean error of each, in float64 on a mixture."""
    betas = BETAS["linear"](FINE, beta_start=0.1 / FINE, beta_end=20 / FINE)
    alpha_bar = np.cumprod(1.0 - betas)
    lam = 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))
    with jax.enable_x64(True):
        tables = Schedule(*[None] * len(Schedule._fields))._replace(
            sqrt_alpha_bar=jnp.sqrt(alpha_bar), sqrt_one_minus_alpha_bar=jnp.sqrt(1 - alpha_bar)
        )
        x_T = jnp.linspace(-2.0, 2.0, 9)[:, None]

    def apply(params, x_t, t):
        now = jax.tree.map(lambda table: table[t][:, None], tables)
        return mixture.x_0_given_x_t(now, x_t)

    def drawn(name: str, options: dict[str, Any], keep: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            chain = respace(betas, keep)
            process = Process(chain, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"])
            denoise = make_denoise(apply, process, threshold=thresholds.none)
            sampler = SAMPLERS[name](chain, **options)
            keys = jax.random.split(jax.random.key(0), len(x_T))
            state = start(sampler, x_T, 0)
            run = jax.jit(lambda s: walk(sampler, functools.partial(denoise, None), keys, s).x_t)
            return np.asarray(run(state))

    def even(steps: int) -> np.ndarray:
        """Even in lambda, where these methods are of their orders."""
        targets = np.linspace(lam[0], lam[-1], steps)
        return np.unique([np.argmin(abs(lam - x)) for x in targets])

    truth = drawn("unipc", {}, even(1000))

    def errors(name: str, options: dict[str, Any], numbers: list[int]) -> np.ndarray:
        found = [drawn(name, options, even(steps)) for steps in numbers]
        assert all(x.dtype == np.float64 for x in found)
        return np.array([abs(x - truth).mean() for x in found])

    return errors


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_its_error_falls_at_its_order(name: str, options: dict, order: int, fine_errors) -> None:
    numbers = [32, 48, 64, 96]
    errors = fine_errors(name, options, numbers)
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert order - 0.5 < slope < order + 0.7, (slope, errors)


def test_more_memory_is_worth_it(fine_errors) -> None:
    second, third, unipc = (
        fine_errors(name, {"order": order}, [32])[0]
        for name, order in (("dpm_solver_pp", 2), ("dpm_solver_pp", 3), ("unipc", 3))
    )
    assert unipc < third < 0.6 * second


@pytest.mark.parametrize("order", [2, 3])
def test_one_step_of_a_multistep_method_has_its_order(order: int) -> None:
    """From exact estimates of the steps before, the local error is one order smaller."""

    def local_error(steps: int) -> tuple[float, ...]:
        # Levels evenly spaced in lambda from 0 to 1; the middle step is of the full order.
        lam = np.concatenate([[np.inf], np.linspace(1.0, 0.0, steps)])
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-2 * lam))), np.sqrt(1 / (1 + np.exp(2 * lam)))
        levels = type(levels_of(LINEAR))(alpha, sigma, lam)
        t = steps // 2
        here, there = t + 1, t

        def integral(x: float) -> float:  # of e^x sin x
            return np.exp(x) * (np.sin(x) - np.cos(x)) / 2

        exact = sigma[there] * (integral(lam[there]) - integral(lam[here]))
        known = np.sin(lam[here : here + 3])
        weights = dpm_weights(levels, order)[t]
        predicted = weights[1:] @ known[:order]
        both = unipc_weights(levels, order)
        step = both.predictor[t][1:] @ known[:order]
        corrected = both.corrector[t - 1][1:] @ np.sin(lam[there : there + order + 1])
        assert weights[0] == pytest.approx(sigma[there] / sigma[here])
        return tuple(abs(exact - found) for found in (predicted, step, corrected))

    errors = np.array([local_error(steps) for steps in (16, 32, 64)])
    slopes = np.log2(errors[:-1] / errors[1:])
    assert (slopes[:, 0] > 2.8).all() and (slopes[:, 1] > order + 0.8).all()
    assert (slopes[:, 2] > order + 1.8).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_it_ends_where_the_flow_of_gaussian_data_does(name: str) -> None:
    x_T = np.linspace(-2.5, 2.5, 7)[:, None].astype(np.float32)

    def apply(params, x_t, t):
        now = mixture.between(LINEAR, t, x_t)
        noise = now.sqrt_one_minus_alpha_bar**2
        return gaussian.x_0_given_x_t(_Now(now.sqrt_alpha_bar, noise), x_t)[0]

    keys = jax.random.split(jax.random.key(0), 7)
    steps = 10 if name == "flow" else 500
    found = run(name, apply, steps, keys, x_T=jnp.asarray(x_T), **DETERMINISTIC[name]).x_0
    np.testing.assert_allclose(found, exact_flow(x_T), atol={"ddim": 1e-2}.get(name, 1e-3))


def test_ddim_of_eta_1_is_ancestral_with_the_small_variance() -> None:
    keys = jax.random.split(jax.random.key(4), 8)
    apply = mixture.best_network(LINEAR)
    one, other = run("ddim", apply, T, keys, eta=1.0), run("ancestral", apply, T, keys)
    np.testing.assert_allclose(one.x_0, other.x_0, atol=2e-5)
    assert float(abs(run("ddim", apply, T, keys).x_0 - other.x_0).max()) > 0.01


def test_what_ddim_encodes_it_decodes() -> None:
    """With an error that falls as the steps grow, at the first order or faster."""
    x_0 = mixture.draw(jax.random.key(5), (64, 1))
    apply = mixture.best_network(LINEAR)

    def error(steps: int) -> float:
        chain = respace(BETA, uniform(T, steps))
        sampler = ddim(chain)
        denoise = model_of(sampler, apply, chain)
        x_T = jax.jit(lambda x: ddim_encode(chain, denoise, x))(x_0)
        assert 0.5 < float(x_T.std()) < 1.5
        keys = jax.random.split(jax.random.key(0), 64)
        return float(abs(run("ddim", apply, steps, keys, x_T=x_T).x_0 - x_0).mean())

    errors = [error(steps) for steps in (10, 40, 160, 640)]
    assert all(fine < 0.6 * coarse for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 0.02, errors


@pytest.mark.parametrize("step_size", [0.02, 0.2])
def test_langevin_ends_in_the_marginal_of_its_level(step_size: float) -> None:
    """Of Gaussian data its variance is known: that of the marginal V over 1 - step / (2 V)."""
    t = jnp.asarray(400)
    chain = respace(BETA, [400])
    apply = gaussian.best_network(LINEAR, PARAMETERIZATIONS["x_0"])
    num = int(12 / step_size)
    sampler = annealed_langevin(chain, steps_per_level=num, step_size=step_size)
    n = 20_000
    state = start(sampler, jnp.full((n, 1), 3.0), 0)
    keys = jax.random.split(jax.random.key(6), n)
    denoise = model_of(sampler, apply, chain)
    x_0 = np.asarray(jax.jit(lambda s: walk(sampler, denoise, keys, s).x_t)(state), np.float64)
    # The last estimate of x_0 is affine in x; turned back, it is the law of x.
    root, noise = float(LINEAR.sqrt_alpha_bar[t]), float(LINEAR.one_minus_alpha_bar[t])
    marginal = root**2 * gaussian.DEVIATION**2 + noise
    gain = gaussian.DEVIATION**2 * root / marginal
    x = root * gaussian.MEAN + (x_0 - gaussian.MEAN) / gain
    stationary = marginal / (1 - step_size * noise / (2 * marginal))
    assert x.mean() == pytest.approx(root * gaussian.MEAN, abs=4 * np.sqrt(stationary / n))
    assert x.var() == pytest.approx(stationary, rel=4 * np.sqrt(2 / n))
    if step_size == 0.2:  # the bias can be told
        assert abs(x.var() - marginal) > 4 * np.sqrt(2 / n) * marginal


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_chain_that_ends_in_noise_is_walked_or_refused_by_name(name: str) -> None:
    betas = BETAS["jsd"](20)
    chain = from_betas(betas)
    if name in ("heun", "dpm_solver_pp", "unipc"):
        with pytest.raises(ValueError, match=f"{name}.*ends in pure noise"):
            SAMPLERS[name](chain)
        return
    if name == "flow":  # refused by what it asks
        with pytest.raises(ValueError, match="ends in pure noise"):
            make_flow(lambda *a: a[1], Process(chain, *_x_0()))
        return
    sampler = SAMPLERS[name](chain)
    denoise = make_denoise(
        lambda p, x, t: 0.5 * x, Process(chain, *_x_0()), threshold=thresholds.clip
    )
    keys = jax.random.split(jax.random.key(0), 3)
    found = walk(sampler, functools.partial(denoise, None), keys, begin(sampler, keys, (2,), 0))
    assert np.isfinite(found.x_t).all()


def _x_0() -> tuple[Any, Any]:
    return PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"]


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
        SAMPLERS[name](LINEAR, **options)


def test_only_these_ask_for_the_models_variance() -> None:
    asking = {name for name in SAMPLERS if SAMPLERS[name](LINEAR).uses_variance}
    assert asking == {"ancestral", "predictor_corrector"}
    assert ancestral(LINEAR).num_steps == T and at(LINEAR, jnp.asarray(0), jnp.zeros(1)).beta > 0
