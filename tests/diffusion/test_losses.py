import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import losses, thresholds
from diffusion.forward import at, q_sample, snr
from diffusion.likelihood import to_bits_per_dim
from diffusion.losses import LOSSES, WEIGHTINGS, Noised, make_loss_fn
from diffusion.parameterizations import PARAMETERIZATIONS, convert
from diffusion.reverse import make_denoise
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Process
from diffusion.variances import VARIANCES
from tests.diffusion.gaussian import variational_bound
from tests.diffusion.walks import ON_CHAINS

SCHEDULE = from_betas(BETAS["linear"](100, beta_start=1e-3, beta_end=0.2))
FIXED = [name for name, variance in VARIANCES.items() if not variance.extra_channels]
COMBINATIONS = list(itertools.product(ON_CHAINS, VARIANCES, LOSSES))
# Whether a loss goes with a variance that is learned; another than these says so by refusing one.
GOES_WITH_LEARNED = {"simple": {False}, "vlb": {False, True}, "hybrid": {True}}


def model(parameterization: str, variance: str) -> Process:
    return Process(SCHEDULE, PARAMETERIZATIONS[parameterization], VARIANCES[variance])


def apply(params: dict, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """A network of two numbers per output channel."""
    h = x_t[..., None] * params["w"] + params["b"]
    return jnp.moveaxis(h, -1, -2).reshape(*x_t.shape[:-1], -1)


def parameters(variance: str, value: float = 0.3) -> dict:
    outputs = 1 + VARIANCES[variance].extra_channels
    return {"w": jnp.full(outputs, value), "b": jnp.full(outputs, -value)}


def batch(n: int = 8) -> tuple:
    one, two = jax.random.split(jax.random.key(3))
    x_0 = jnp.round(jax.random.uniform(one, (n, 4, 4, 2)) * 255) / 127.5 - 1
    x_0 = x_0.at[0].set(-1.0).at[1].set(1.0)
    t = jnp.array([0, 0, 0, 1, 2, 50, 98, 99])[:n]
    return x_0, t, jax.random.normal(two, x_0.shape)


@pytest.mark.parametrize(("parameterization", "variance", "loss"), COMBINATIONS)
def test_every_combination_has_finite_gradients_or_is_refused(
    parameterization: str, variance: str, loss: str
) -> None:
    loss_fn = make_loss_fn(apply, model(parameterization, variance), LOSSES[loss])
    params = parameters(variance)

    def mean(params: dict) -> jax.Array:
        return loss_fn(params, *batch()).mean()

    learned = variance not in FIXED
    try:
        value, gradient = jax.value_and_grad(mean)(params)
    except ValueError as refusal:
        assert f"loss `{loss}`" in str(refusal) and "Allowed: " in str(refusal)
        assert learned not in GOES_WITH_LEARNED.get(loss, ())
        return
    assert learned in GOES_WITH_LEARNED.get(loss, (learned,))
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() and (g != 0).all() for g in gradient.values())


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("log_variance", [-80.0, 80.0])
def test_the_bounds_gradient_survives_absurd_variances(variance: str, log_variance: float) -> None:
    loss_fn = make_loss_fn(apply, model("eps", variance), LOSSES["vlb"])
    params = parameters(variance)
    params["b"] = params["b"].at[-1].set(log_variance)
    gradient = jax.grad(lambda p: loss_fn(p, *batch()).mean())(params)
    assert all(jnp.isfinite(g).all() for g in gradient.values())


@pytest.mark.parametrize("parameterization", ON_CHAINS)
def test_a_perfect_output_costs_nothing(parameterization: str) -> None:
    m = model(parameterization, "fixed_small")
    x_0, t, eps = batch()
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    noised = Noised(x_0, eps, x_t, at(SCHEDULE, t, t))
    target = m.parameterization.target(at(SCHEDULE, t, x_t), x_0, eps, x_t)
    np.testing.assert_array_equal(losses.simple(m, target, noised), jnp.zeros(8))
    np.testing.assert_allclose(losses.simple(m, target + 0.5, noised), 0.25, rtol=1e-4)


@pytest.mark.parametrize("parameterization", ON_CHAINS)
@pytest.mark.parametrize("variance", FIXED)
def test_the_vlb_weighting_turns_simple_into_the_bound(
    parameterization: str, variance: str
) -> None:
    """For t > 0 and up to a constant that the network cannot change (DDPM Eqs. 8, 12)."""
    m = model(parameterization, variance)
    x_0, t, eps = batch()
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    noised = Noised(x_0, eps, x_t, at(SCHEDULE, t, t))
    target = m.parameterization.target(at(SCHEDULE, t, x_t), x_0, eps, x_t)
    later = slice(3, None)

    def bits(output: jax.Array) -> jax.Array:
        return losses.vlb(m, output, noised, scale=1 / SCHEDULE.num_timesteps)

    def weighted(output: jax.Array) -> jax.Array:
        return to_bits_per_dim(losses.simple(m, output, noised, weighting=WEIGHTINGS["vlb"]))

    wrong = target + 0.3
    np.testing.assert_allclose(
        (bits(wrong) - bits(target))[later], weighted(wrong)[later], rtol=2e-3
    )


def test_the_vlb_weight_of_eps_is_equation_12() -> None:
    t = jnp.arange(1, 100)
    beta, alpha, noise = SCHEDULE.beta[t], SCHEDULE.alpha[t], SCHEDULE.noise_variance[t]
    expected = beta**2 / (2 * beta * alpha * noise)
    np.testing.assert_allclose(
        losses.vlb_weight(model("eps", "fixed_large"), at(SCHEDULE, t, t)), expected, rtol=1e-4
    )


@pytest.mark.parametrize("parameterization", ON_CHAINS)
def test_min_snr_is_the_published_weight(parameterization: str) -> None:
    """On the squared error of x_0 it is min(SNR, gamma), whatever the network predicts."""
    t = jnp.arange(100)
    ratio = snr(SCHEDULE)
    kept = jnp.minimum(ratio, 5.0)
    m = model(parameterization, "fixed_small")
    actual = losses.min_snr_weight(m, at(SCHEDULE, t, t), gamma=5.0)
    published = {
        "x_0": kept,
        "eps": kept / ratio,
        "v": kept / (ratio + 1),
        "mu": kept / jnp.square(SCHEDULE.posterior_mean_x_0),
    }
    np.testing.assert_allclose(actual, published.get(parameterization, actual), rtol=1e-3)
    now, output, x_t = at(SCHEDULE, t, ratio), jnp.sin(ratio), jnp.cos(ratio)
    off = [m.parameterization.decode(now, output + change, x_t) for change in (1.0, -1.0)]
    np.testing.assert_allclose(4 * actual, kept * jnp.square(off[0] - off[1]), rtol=1e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_weighting_multiplies_the_squared_error_or_is_refused(
    weighting: str, variance: str
) -> None:
    """Of the loss that goes with the variance, by a weight that is finite and never negative."""
    x_0, t, eps = batch()
    noised = Noised(x_0, eps, q_sample(SCHEDULE, x_0, t, eps), at(SCHEDULE, t, t))
    weigh, m = WEIGHTINGS[weighting], model("eps", variance)
    loss, options = losses.simple, {}
    if variance not in FIXED:
        loss, options = losses.hybrid, {"vlb_coefficient": 0.0}
    output = 0.3 * jnp.ones((8, 4, 4, 2 * (1 + m.variance.extra_channels)))
    try:
        weight = weigh(m, at(SCHEDULE, t, t))
    except ValueError as refusal:
        assert f"weighting `{weighting}`" in str(refusal) and variance not in FIXED
        return
    assert weight.shape == t.shape and jnp.isfinite(weight).all() and (weight >= 0).all()
    np.testing.assert_allclose(
        loss(m, output, noised, weighting=weigh, **options),
        weight * loss(m, output, noised, **options),
        rtol=1e-5,
    )


def test_weighting_by_a_learned_variance_is_refused() -> None:
    m = model("eps", "learned")
    x_0, t, eps = batch()
    noised = Noised(x_0, eps, x_0, at(SCHEDULE, t, t))
    output = jnp.zeros((8, 4, 4, 4))
    with pytest.raises(ValueError, match="needs a fixed variance"):
        losses.hybrid(m, output, noised, weighting=WEIGHTINGS["vlb"])


def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_simple() -> None:
    m = model("eps", "learned_range")
    x_0, t, eps = batch()
    noised = Noised(x_0, eps, q_sample(SCHEDULE, x_0, t, eps), at(SCHEDULE, t, t))
    output = jax.random.normal(jax.random.key(0), (8, 4, 4, 4)) * 0.3

    def gradient(loss) -> jax.Array:
        return jax.grad(lambda o: loss(m, o, noised).mean())(output)

    both = gradient(lambda *a: losses.hybrid(*a, vlb_coefficient=1e-3))
    fixed = model("eps", "fixed_small")
    mean = jax.grad(lambda o: losses.simple(fixed, o, noised).mean())(output[..., :2])
    bound = gradient(losses.vlb)
    np.testing.assert_allclose(both[..., :2], mean, rtol=1e-5)
    np.testing.assert_allclose(both[..., 2:], 1e-3 * bound[..., 2:], rtol=1e-4, atol=1e-9)


def test_the_vlb_loss_is_an_unbiased_estimate_of_the_bound(key: jax.Array) -> None:
    """With t uniform, its mean is L - L_T in bits per dimension; the decoder's term included."""
    m = model("eps", "fixed_large")
    params = parameters("fixed_large")
    denoise = make_denoise(apply, m, threshold=thresholds.none)
    image = batch(3)[0][2]
    n, times = 40_000, SCHEDULE.num_timesteps
    x_0 = jnp.broadcast_to(image, (n, *image.shape))
    one, two = jax.random.split(key)
    t = jax.random.randint(one, (n,), 0, times)
    eps = jax.random.normal(two, x_0.shape)
    estimate = jax.jit(make_loss_fn(apply, m, LOSSES["vlb"]))(params, x_0, t, eps)
    result = variational_bound(
        SCHEDULE,
        lambda x, t: denoise(params, x, t),
        x_0[:200],
        jax.random.split(jax.random.fold_in(key, 9), 200),
    )
    full = to_bits_per_dim(result.terms.sum(axis=0))
    error = float(jnp.sqrt(estimate.var() / n + full.var() / 200))
    assert float(estimate.mean()) == pytest.approx(float(full.mean()), abs=4 * error)


@pytest.mark.parametrize("space", ON_CHAINS)
@pytest.mark.parametrize("predicts", ON_CHAINS)
def test_a_loss_in_another_space_is_that_of_a_network_that_predicts_it(
    predicts: str, space: str
) -> None:
    """The same estimate of x_0 costs the same in one space, whatever the network emits."""
    m, other = model(predicts, "fixed_small"), model(space, "fixed_small")
    x_0, t, eps = (array[3:] for array in batch())
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    now = at(SCHEDULE, t, x_t)
    noised = Noised(x_0, eps, x_t, at(SCHEDULE, t, t))
    half = 0.5 * x_0
    output = m.parameterization.target(now, half, (x_t - now.signal * half) / now.noise, x_t)
    there = convert(now, output, x_t, m.parameterization, other.parameterization)
    np.testing.assert_allclose(
        losses.simple(m, output, noised, space=other.parameterization),
        losses.simple(other, there, noised),
        rtol=2e-3,
    )
