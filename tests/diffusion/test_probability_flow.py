"""The flow's likelihood on correlated Gaussian data, whose density and denoiser are known."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import ndtr, ndtri

from diffusion import random
from diffusion.forward import at, q_sample
from diffusion.likelihood import exact_decoder
from diffusion.networks.unet import UNet
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.probability_flow import (
    Flow,
    FlowLikelihood,
    decoded_bits_per_dim,
    dequantize,
    divergence,
    likelihood,
    make_flow,
    rademacher,
)
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Gaussian, Prediction, Process, Schedule
from diffusion.variances import VARIANCES
from tests.diffusion.correlated import (
    CONSTANT,
    DATA,
    LINEAR,
    SHORT,
    best_apply,
    best_flow,
    curved,
    ends,
    straight,
)
from tests.diffusion.gaussian import log_density, x_0_given_x_t
from tests.diffusion.walks import ON_CHAINS

KEYS = random.per_index(random.stream(0, "probes"), jnp.arange(8192))


@functools.cache
def solver(flow: Flow, **options: Any) -> Callable[..., FlowLikelihood]:
    """(x, keys, tolerance, **inputs) -> likelihood, compiled."""

    def run(x: jax.Array, keys: jax.Array, tol: float, **inputs: Any) -> FlowLikelihood:
        return likelihood(flow, None, x, keys, rtol=tol, atol=tol, **options, **inputs)

    return jax.jit(run)


def solve(
    flow: Flow,
    x: jax.Array,
    tolerance: float = 1e-5,
    inputs: Mapping[str, jax.Array] = MappingProxyType({}),
    **options: Any,
) -> FlowLikelihood:
    result = solver(flow, **options)(x, KEYS[: len(x)], tolerance, **inputs)
    assert result.log_density.shape == result.evaluations.shape == result.success.shape == (len(x),)
    return result


def test_what_has_no_flow_is_refused() -> None:
    def flow(schedule: Schedule, name: str) -> Flow:
        return make_flow(
            lambda *_: None, Process(schedule, PARAMETERIZATIONS[name], VARIANCES["learned"])
        )

    with pytest.raises(ValueError, match=r"mean of single steps \(mu\)"):
        flow(LINEAR, "mu")
    with pytest.raises(ValueError, match="at least 2 timesteps"):
        flow(from_betas([0.1]), "v")
    with pytest.raises(ValueError, match=r"beta\[9\] is 1"):
        flow(from_betas(BETAS["jsd"](10)), "v")
    with pytest.raises(ValueError, match="dividing by alpha_bar"):
        flow(from_betas([0.9] * 60), "eps")
    with pytest.raises(ValueError, match="num_probes = 0"):
        likelihood(
            best_flow(SHORT),
            None,
            jnp.zeros((0, 1)),
            jax.random.split(jax.random.key(0), 0),
            num_probes=0,
        )


@pytest.mark.parametrize(
    "name", [name for name, each in ON_CHAINS.items() if not each.predicts_mean]
)
def test_the_best_denoisers_flow_has_the_true_density(name: str) -> None:
    """Every image's, at the noise level of the first step, and whatever the network predicts."""
    first, _ = ends(CONSTANT)
    x = DATA.draw(first, 16)
    result = solve(best_flow(CONSTANT, name, straight), x, num_probes=None)
    assert result.success.all() and (result.evaluations < 150).all()
    truth = DATA.log_density(first, x)
    assert truth.std() > 0.1
    np.testing.assert_allclose(result.log_density, truth, atol=1e-4, rtol=0)


def test_the_error_falls_with_the_tolerance() -> None:
    """On the paper's chain, whose last step leaves a little signal that the prior does not have."""
    first, last = ends(LINEAR)
    x, flow = DATA.draw(first, 16), best_flow(LINEAR)
    truth = DATA.flow_log_density(first, last, x)
    assert 1e-4 < abs(truth - DATA.log_density(first, x)).max() < 2e-2
    keys = jax.random.split(jax.random.key(0), 16)
    run = jax.jit(lambda tol: likelihood(flow, None, x, keys, num_probes=None, rtol=tol, atol=tol))
    tolerances = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    results = [run(tolerance) for tolerance in tolerances]
    errors = [np.sqrt(np.mean((np.asarray(r.log_density) - truth) ** 2)) for r in results]
    slope, _ = np.polyfit(np.log(tolerances), np.log(errors), 1)
    assert 0.5 < slope < 1.2
    assert errors[-2] < 1e-4 and errors[-1] < 1e-5
    evaluations = [int(r.evaluations.sum()) for r in results]
    assert evaluations == sorted(evaluations)


@functools.cache
def solve_short(num_probes: int) -> Callable[..., FlowLikelihood]:
    flow = best_flow(SHORT)
    return jax.jit(lambda x, keys: likelihood(flow, None, x, keys, num_probes=num_probes))


def test_its_mean_is_the_entropy() -> None:
    first, _ = ends(SHORT)
    result = solve_short(1)(DATA.draw(first, 2048), KEYS[:2048])
    entropy = 0.5 * np.log(2 * np.pi * np.e * DATA.variance(first)).mean()
    error = float(result.log_density.std()) / np.sqrt(2048)
    assert error < 0.02
    assert -float(result.log_density.mean()) == pytest.approx(entropy, abs=4 * error)


def test_random_probes_have_the_exact_divergences_mean() -> None:
    """The Jacobian is not diagonal in the pixels; where it is, Rademacher probes have no error."""
    first, _ = ends(SHORT)
    x = DATA.draw(first, 1)
    exact, many = float(DATA.log_density(first, x)[0]), jnp.repeat(x, 2048, axis=0)
    values = {
        n: np.asarray(solve_short(n)(many, KEYS[:2048]).log_density, np.float64) for n in (1, 4)
    }
    for n in (1, 4):
        error = values[n].std() / np.sqrt(2048)
        assert values[n].mean() == pytest.approx(exact, abs=4 * error)
    assert values[1].std() > 0.1
    assert values[1].var() / values[4].var() == pytest.approx(4.0, rel=0.3)


def test_divergence_and_probes() -> None:
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    value, trace = divergence(lambda x: matrix @ x, jnp.ones(4), 2.0 * jnp.eye(4))
    np.testing.assert_allclose(value, matrix.sum(axis=1), rtol=1e-6)
    assert float(trace) == pytest.approx(float(jnp.trace(matrix)), rel=1e-5)
    keys = KEYS[:2]
    probes = rademacher(keys[0], 500, (2, 3))
    assert set(np.unique(probes)) == {-1.0, 1.0} and abs(float(probes.mean())) < 0.1
    np.testing.assert_array_equal(rademacher(keys[0], 3, (2, 3)), probes[:3])
    assert (rademacher(keys[1], 500, (2, 3)) != probes).any()


def over_devices(number: int) -> NamedSharding:
    """Rows divided among this many devices."""
    mesh = jax.make_mesh((number,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


@pytest.mark.slow
def test_an_image_has_the_same_value_in_any_batch() -> None:
    """Beside a hard neighbour, alone, in other places and on other devices.

    Other code for another batch rounds differently, which may change a step's length a little, and
    with it the value by a part of the solve's error.
    """
    x = DATA.draw(ends(SHORT)[0], 8).at[4].mul(30.0)
    keys, run = KEYS[:8], solve_short(1)
    everyone = run(x, keys)
    assert len(set(np.asarray(everyone.evaluations).tolist())) > 1
    divided = over_devices(8)
    for rows, place in (([2], None), ([7, 6, 5, 4, 3, 2, 1, 0], divided)):
        rows = jnp.array(rows)
        some = run(*jax.device_put((x[rows], keys[rows]), place))
        assert place is None or some.log_density.sharding.is_equivalent_to(place, 1)
        np.testing.assert_allclose(
            some.log_density, everyone.log_density[rows], rtol=2e-5, atol=5e-5
        )
        assert (abs(some.evaluations - everyone.evaluations[rows]) <= 12).all()


def test_further_inputs_go_with_their_image() -> None:
    first, _ = ends(SHORT)
    x, shift = DATA.draw(first, 3), jnp.array([0.0, 0.5, -1.0])
    moved = x + np.exp(first / 2) * shift[:, None, None, None]
    result = solve(best_flow(SHORT), moved, inputs={"shift": shift}, num_probes=None)
    np.testing.assert_allclose(result.log_density, DATA.log_density(first, x), atol=1e-4)


def test_a_flow_that_stands_still_has_the_priors_density() -> None:
    flow = Flow(lambda params, x, u: jnp.zeros_like(x), lambda params, x, u: x, 0.0, 1.0, 1.0)
    result = solve(flow, jnp.array([[0.0, 0.0], [1.0, 2.0], [1e25, 0.0]]))
    expected = -0.5 * (np.log(2 * np.pi) + np.array([0.0, 2.5]))
    np.testing.assert_allclose(result.log_density[:2], expected, rtol=1e-6)
    assert result.success.tolist() == [True, True, False]  # its density is 0 to float32


def test_a_failed_solve_says_so_without_nan() -> None:
    """Image 1 meets a NaN, and image 2 needs more steps than it is given; their neighbours do not.

    A NaN gives up at once, instead of using up the steps.
    """
    best = best_apply("eps", curved(SHORT))

    def broken(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        rough = jnp.where(x.mean() > 20.0, 30.0 * jnp.sin(50.0 * t[0]), best(params, x, t))
        return jnp.where(x.mean() < -20.0, jnp.nan, rough)

    flow = make_flow(broken, Process(SHORT, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]))
    x = DATA.draw(ends(SHORT)[0], 4).at[1].set(-100.0).at[2].set(100.0)
    result = solve(flow, x, tolerance=1e-3, max_steps=50)
    assert result.success.tolist() == [True, False, False, True]
    assert np.isfinite(result.log_density).tolist() == [True, False, False, True]
    assert (result.log_density[1:3] == -jnp.inf).all() and (result.bits_per_dim()[1:3] > 1e9).all()
    assert int(result.evaluations[1]) < 100 and int(result.evaluations[2]) == 301


def test_evaluations_are_counted() -> None:
    calls = []

    def counting(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return best_apply("eps", curved(SHORT))(params, x, t)

    flow = make_flow(counting, Process(SHORT, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]))
    result = solve(flow, DATA.draw(ends(SHORT)[0], 1))
    jax.effects_barrier()
    assert len(calls) == int(result.evaluations[0])
    assert min(calls) == 0.0 and max(calls) == 99.0


# --- 8-bit data ---


@pytest.mark.parametrize("num_levels", [17, 256])
def test_dequantized_values_fill_their_bins(num_levels: int) -> None:
    half, count = 1 / (num_levels - 1), num_levels * 1600
    x_0 = jnp.linspace(-1.0, 1.0, num_levels)[:, None]
    keys = random.per_index(random.stream(0, "dequantize"), jnp.arange(num_levels))
    noise = dequantize(jnp.repeat(x_0, 1600, axis=1), keys, num_levels) - x_0
    assert (abs(noise) <= 1.0001 * half).all() and float(abs(noise).max()) > 0.99 * half
    assert float(noise.mean()) == pytest.approx(0.0, abs=4 * half / np.sqrt(3 * count))
    assert float(noise.var()) == pytest.approx(half**2 / 3, rel=0.03)
    assert (noise[0] != noise[1]).any()


def first_noised(x_0: jax.Array) -> jax.Array:
    keys = random.per_index(random.stream(0, "first"), jnp.arange(len(x_0)))
    return q_sample(LINEAR, x_0, jnp.array(0), random.normal(keys, 0, x_0.shape[1:]))


def test_the_flow_through_the_true_decoder_is_the_density_of_the_data() -> None:
    """p(x_1) p(x_0 | x_1) / q(x_1 | x_0) = p(x_0) at every x_1, where all of them are true."""
    std = 0.3
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)) * std, jnp.float32)
    x_1 = first_noised(x_0)

    def apply(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        log = curved(LINEAR)(t)[:, None]
        return x * jnp.sqrt(-jnp.expm1(log)) / (jnp.exp(log) * std**2 - jnp.expm1(log))

    flow = make_flow(apply, Process(LINEAR, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]))
    first = at(LINEAR, jnp.zeros(64, jnp.int32), x_1)
    mean, variance = x_0_given_x_t(first, x_1, 0.0, std)
    prediction = Prediction(mean, mean, mean, jnp.log(variance))
    bits = decoded_bits_per_dim(LINEAR, solve(flow, x_1), prediction, x_0, x_1, log_density)
    expected = -log_density(x_0, Gaussian(jnp.zeros(()), jnp.log(std**2))).mean(axis=1)
    # The flow starts from N(0, I) instead of the chain's own last marginal: 4e-5 of signal.
    np.testing.assert_allclose(bits, expected / np.log(2), atol=2e-3)


def test_a_certain_pixel_costs_nothing_through_the_decoder_and_1_71_bits_without() -> None:
    x_0 = jnp.full((256, 2), 127.0 / 127.5 - 1.0)

    def apply(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        log = curved(LINEAR)(t)[:, None]
        return (x - jnp.exp(0.5 * log) * x_0[0, 0]) / jnp.sqrt(-jnp.expm1(log))

    flow = make_flow(apply, Process(LINEAR, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]))
    keys = random.per_index(random.stream(0, "dequantize"), jnp.arange(256))
    uniform = solve(flow, dequantize(x_0, keys)).bits_per_dim()
    assert float(uniform.mean()) == pytest.approx(1.713, abs=0.005)
    x_1 = first_noised(x_0)
    certain = Prediction(x_0, x_0, x_0, jnp.asarray(-20.0))
    bits = decoded_bits_per_dim(LINEAR, solve(flow, x_1), certain, x_0, x_1, exact_decoder)
    np.testing.assert_allclose(bits, 0.0, atol=2e-3)


def test_dequantized_bits_lie_just_above_the_entropy() -> None:
    """Of Gaussians rounded to the 256 levels, with the flow that is optimal for them unrounded.

    What it pays beyond the entropy of the levels: that its density is that of data with the first
    step's noise, and is not flat within a bin; both are known by quadrature.
    """
    deviations, count, first = np.array([0.02, 0.05, 0.2]), 4096, ends(LINEAR)[0]
    levels = np.arange(256) / 127.5 - 1.0
    edges = (np.append(levels - 1 / 255, np.inf) / deviations[:, None]).clip(-1e3, 1e3)
    chance = np.diff(ndtr(edges), axis=1)
    entropy = -np.sum(np.where(chance > 0, chance * np.log2(chance + 1e-300), 0.0), axis=1)
    inner = levels[:, None] + (np.arange(200) + 0.5 - 100) / 100 / 255
    variance = (np.exp(first) * deviations**2 - np.expm1(first))[:, None, None]
    density = -0.5 * (inner**2 / variance + np.log(2 * np.pi * variance)).mean(axis=2)
    bits = -(chance * (density / np.log(2) + np.log2(2 / 255))).sum(axis=1)
    assert (bits - entropy > 0.0).all() and 0.005 < (bits - entropy).mean() < 0.05

    def apply(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        log = curved(LINEAR)(t)[:, None]
        return x * jnp.sqrt(-jnp.expm1(log)) / (jnp.exp(log) * deviations**2 - jnp.expm1(log))

    flow = make_flow(apply, Process(LINEAR, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]))
    # The quantiles of the data instead of draws, so that only the noise in the bins is random.
    draws = ndtri((np.arange(count) + 0.5) / count)[:, None] * deviations
    x_0 = jnp.asarray(np.round((draws + 1) * 127.5) / 127.5 - 1, jnp.float32)
    keys = random.per_index(random.stream(0, "dequantize"), jnp.arange(2 * count))
    result = solve(flow, dequantize(jnp.tile(x_0, (2, 1)), keys))  # one probe is exact: J diagonal
    found = np.asarray(result.bits_per_dim(), np.float64).reshape(2, count)
    error = (found[0] - found[1]).std() / 2 / np.sqrt(count)
    assert result.success.all() and error < 2e-3
    assert found.mean() == pytest.approx(bits.mean(), abs=4 * error)
    assert found.mean() > entropy.mean() + 4 * error


# --- The network ---


@pytest.mark.slow
def test_the_unet_under_jit_on_sharded_images() -> None:
    """Parameters are an argument, the variance is split off, and its custom gradients serve."""
    network, draw = UNet(2, 8, (1,), 1, (), norm_groups=4), np.random.default_rng(0)
    x = jnp.asarray(0.3 * draw.normal(size=(2, 4, 4, 1)), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))["params"]
    trained = jax.tree.map(lambda leaf: 0.3 * draw.normal(size=leaf.shape).astype("f4"), shapes)
    silent = trained | {"conv_out": jax.tree.map(np.zeros_like, trained["conv_out"])}

    def apply(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return network.apply({"params": params}, x, t)

    schedule = from_betas(BETAS["linear"](20, beta_start=1e-3, beta_end=0.5))
    flow = make_flow(apply, Process(schedule, PARAMETERIZATIONS["eps"], VARIANCES["learned_range"]))
    run = jax.jit(lambda params, x, keys: likelihood(flow, params, x, keys))
    keys = KEYS[:2]
    silence = run(silent, *jax.device_put((x, keys), over_devices(2)))
    # Where the network sees no noise the flow only shrinks x, as the signal's root falls.
    first, last = ends(schedule)
    square = np.square(x, dtype=np.float64).mean(axis=(1, 2, 3)) * np.exp(last - first)
    expected = 0.5 * (last - first) - 0.5 * (square + np.log(2 * np.pi))
    np.testing.assert_allclose(silence.log_density, expected, atol=3e-4)
    result = run(trained, *jax.device_put((x, keys), over_devices(2)))
    assert result.success.all() and (abs(result.log_density - expected) > 0.1).all()

    # v . J v by reverse mode, against differences of the velocity along v.
    @jax.jit
    def both(x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, ends = jnp.array(3.4), jnp.stack([x + 3e-3 * v, x - 3e-3 * v])
        _, reverse = divergence(lambda x: flow.velocity(trained, x[None], u)[0], x, v[None])
        plus, minus = flow.velocity(trained, ends, u)
        return reverse, jnp.sum(v * (plus - minus)) / 6e-3

    reverse, difference = both(x[0], rademacher(keys[0], 1, x.shape[1:])[0])
    assert float(reverse) == pytest.approx(float(difference), rel=1e-2)
