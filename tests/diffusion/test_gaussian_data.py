"""The whole theory at once, on data whose best denoiser is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import random, thresholds
from diffusion.forward import at, q_posterior, q_sample, q_step
from diffusion.likelihood import (
    bound_terms,
    prior_term,
    stratified_timesteps,
    vlb_term,
)
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import levels_of
from diffusion.reverse import make_denoise
from diffusion.samplers import ancestral, predictor_corrector
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.structs import Gaussian, Process
from tests.diffusion.gaussian import (
    DEVIATION,
    MEAN,
    Bound,
    best_network,
    exact_variance,
    log_density,
    variational_bound,
)
from tests.diffusion.walks import ON_CHAINS, sample

LINEAR = from_betas(BETAS["linear"](1000))
STANDARD = Gaussian(jnp.zeros(()), jnp.zeros(()))


def denoiser(schedule, name="eps", std=DEVIATION):
    parameterization = PARAMETERIZATIONS[name]
    network = best_network(schedule, parameterization, std=std)
    denoise = make_denoise(
        network, Process(schedule, parameterization, exact_variance(std)), threshold=thresholds.none
    )
    return lambda x_t, t: denoise(None, x_t, t)


def density_decoder(x_0: jax.Array, p: Gaussian) -> jax.Array:
    return log_density(x_0, p)


def bound(schedule, denoise, x_0, keys) -> Bound:
    compute = jax.jit(
        lambda x, k: variational_bound(schedule, denoise, x, k, decoder=density_decoder)
    )
    return compute(x_0, keys)


@pytest.mark.parametrize("name", ON_CHAINS)
def test_the_best_denoisers_bound_is_the_true_likelihood(name: str, key: jax.Array) -> None:
    """With the true reverse process the bound is tight: its mean is -log p(x_0) for every x_0."""
    values, draws = jnp.array([-0.4, 0.3, 1.2]), 256  # means over 16 values each
    x_0 = jnp.repeat(values, draws)[:, None] * jnp.ones(16)
    result = bound(LINEAR, denoiser(LINEAR, name), x_0, jax.random.split(key, 3 * draws))
    total = np.asarray(result.total, np.float64).reshape(3, draws)
    error = total.std(axis=1) / np.sqrt(draws)
    truth = -log_density(values, Gaussian(jnp.array(MEAN), jnp.array(2 * np.log(DEVIATION))))
    assert (error < 0.05).all()
    assert (abs(total.mean(axis=1) - truth) < 4 * error).all()


def test_its_mean_over_the_data_is_the_entropy(key: jax.Array) -> None:
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (64, 64))
    result = bound(LINEAR, denoiser(LINEAR), x_0, jax.random.split(jax.random.fold_in(key, 9), 64))
    entropy = 0.5 * np.log(2 * np.pi * np.e * DEVIATION**2)
    error = float(result.total.std()) / 8
    assert float(result.total.mean()) == pytest.approx(entropy, abs=4 * error) and error < 0.03
    # The estimate of x_0 at each t has the conditional variance as its squared error.
    root, noise = LINEAR.signal, LINEAR.noise_variance
    expected = DEVIATION**2 * noise / (root**2 * DEVIATION**2 + noise)
    np.testing.assert_allclose(result.x_0_mse.mean(axis=1), expected, rtol=0.15)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ancestral_samples_have_the_datas_moments(name: str, key: jax.Array) -> None:
    schedule = from_betas(BETAS[name](300 if name == "cosine" else 1000))
    keys = random.per_index(key, jnp.arange(4000))
    draw = jax.jit(
        lambda k: sample(ancestral(levels_of(schedule)), denoiser(schedule), k, (4,)).x_0
    )
    x_0 = np.asarray(draw(keys))
    assert x_0.mean() == pytest.approx(MEAN, abs=4 * DEVIATION / np.sqrt(16_000))
    assert x_0.var() == pytest.approx(DEVIATION**2, rel=4 * np.sqrt(2 / 16_000))
    assert abs(np.corrcoef(x_0.T)[0, 1]) < 0.07


def test_a_correction_is_made_at_the_level_below_with_noise_of_its_own(key: jax.Array) -> None:
    """It leaves the mean, and turns the variance V into (1 - s sigma^2 / V)^2 V + 2 s sigma^2.

    The best predictor leads from the marginal of x_t to that of x_{t-1}, whose V and sigma those
    are. A single step, between two levels that are far apart.
    """
    schedule, size, n = from_betas([0.2, 0.9]), 0.5, 100_000
    sampler, keys = (
        predictor_corrector(levels_of(schedule), step_size=size),
        jax.random.split(key, n),
    )
    root, noise = schedule.signal, schedule.noise_variance
    marginal = root**2 * DEVIATION**2 + noise
    x_t = root[1] * MEAN + jnp.sqrt(marginal[1]) * random.normal(keys, 99, (1,))

    def draws(number: int | jax.Array) -> jax.Array:
        return random.normal(keys, number, (1,))

    x = sampler.step(denoiser(schedule), x_t, jnp.asarray(1), draws, ()).x
    force = float(size * noise[0] / marginal[0])
    variance = float((1 - force) ** 2 * marginal[0] + 2 * size * noise[0])
    assert float(x.mean()) == pytest.approx(float(root[0]) * MEAN, abs=4 * np.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=4 * np.sqrt(2 / n))


@pytest.mark.parametrize(
    "name", [name for name, each in ON_CHAINS.items() if not each.predicts_mean]
)
def test_a_respaced_chain_still_samples_the_data(name: str, key: jax.Array) -> None:
    """The true p(x_{t-1} | x_t) is Gaussian at any step length when the data is."""
    schedule = respace(BETAS["linear"](1000), [0, 20, 150, 400, 700, 999])
    keys = random.per_index(key, jnp.arange(4000))
    # The network sees the original timesteps, so it is the best network of the full chain. (What mu
    # means depends on the step's length: `build` refuses to respace it.)
    parameterization = PARAMETERIZATIONS[name]
    denoise = make_denoise(
        best_network(LINEAR, parameterization),
        Process(schedule, parameterization, exact_variance()),
        threshold=thresholds.none,
    )
    draw = jax.jit(
        lambda k: (
            sample(ancestral(levels_of(schedule)), lambda x, t: denoise(None, x, t), k, (4,)).x_0
        )
    )
    x_0 = draw(keys)
    assert float(x_0.mean()) == pytest.approx(MEAN, abs=4 * DEVIATION / np.sqrt(16_000))
    assert float(x_0.var()) == pytest.approx(DEVIATION**2, rel=4 * np.sqrt(2 / 16_000))


def test_rao_blackwell_keeps_the_mean_and_lowers_the_variance(key: jax.Array) -> None:
    """Eq. 3 and Eq. 5 with a draw of their own at every t, as a loss at a random t has it.

    (Along one shared path it need not be so: there the terms of Eq. 3 cancel each other's noise,
    and for a perfect model their sum is -log p(x_0) without any.)
    """
    schedule = from_betas(BETAS["linear"](40, beta_start=1e-3, beta_end=0.4))
    denoise = denoiser(schedule, std=0.8)  # a wrong model: a perfect one has no gap to estimate
    n = 20_000
    x_0 = jnp.full((n, 1), 0.9)

    def both(t: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch_t = jnp.full(n, t)
        x_t = q_sample(schedule, x_0, batch_t, noise[0])
        posterior = q_posterior(at(schedule, batch_t, x_t), x_0, x_t)
        deviation = jnp.sqrt(schedule.posterior_variance[t])
        x_prev = posterior.mean + deviation * noise[1]
        p = denoise(x_t, batch_t)
        reverse = log_density(x_prev, Gaussian(p.mean, p.log_variance))
        direct = log_density(x_t, q_step(schedule, x_prev, t)) - reverse
        closed = vlb_term(at(schedule, batch_t, x_t), p, x_0, x_t, decoder=density_decoder)
        return direct[:, 0], closed

    times = jnp.arange(schedule.num_timesteps)
    one, two = jax.random.split(key)
    noise = jax.random.normal(one, (schedule.num_timesteps, 2, n, 1))
    direct, closed = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(both))(times, noise))
    x_T = q_sample(schedule, x_0, jnp.full(n, times[-1]), jax.random.normal(two, x_0.shape))
    direct_total = direct.sum(axis=0) - np.asarray(log_density(x_T, STANDARD))[:, 0]
    closed_total = closed.sum(axis=0) + np.asarray(prior_term(schedule, x_0))
    error = np.sqrt((direct_total.var() + closed_total.var()) / n)
    assert direct_total.mean() == pytest.approx(closed_total.mean(), abs=4 * error)
    assert closed_total.var() < 0.5 * direct_total.var()


def test_any_other_model_has_a_larger_bound(key: jax.Array) -> None:
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (256, 16))
    keys = jax.random.split(jax.random.fold_in(key, 9), 256)
    schedule = from_betas(BETAS["linear"](40, beta_start=1e-3, beta_end=0.4))
    totals = [
        float(bound(schedule, denoiser(schedule, std=std), x_0, keys).total.mean())
        for std in (0.25, DEVIATION, 0.8)
    ]
    assert totals[1] < totals[0] and totals[1] < totals[2]


def test_the_uniform_estimate_of_the_bound_is_unbiased(key: jax.Array) -> None:
    """T times the term at a uniform t has the mean of the full sum."""
    schedule = from_betas(BETAS["linear"](40, beta_start=1e-3, beta_end=0.4))
    denoise = denoiser(schedule, std=0.8)
    n = 200_000
    x_0 = jnp.full((n, 1), 0.9)
    one, two = jax.random.split(key)
    t = jax.random.randint(one, (n,), 0, 40)

    @jax.jit
    def term(noise: jax.Array) -> jax.Array:
        x_t = q_sample(schedule, x_0, t, noise)
        return vlb_term(at(schedule, t, x_t), denoise(x_t, t), x_0, x_t, decoder=density_decoder)

    estimate = 40 * term(jax.random.normal(two, x_0.shape))
    many = jnp.full((1000, 1), 0.9)
    full = bound(
        schedule, denoise, many, jax.random.split(jax.random.fold_in(key, 9), 1000)
    ).terms.sum(axis=0)
    error = float(jnp.sqrt(estimate.var() / n + full.var() / 1000))
    assert float(estimate.mean()) == pytest.approx(float(full.mean()), abs=4 * error)


@pytest.mark.parametrize("num_strata", [1, 7, 40, 999])
def test_strata_cut_the_chain_into_disjoint_parts(num_strata: int, key: jax.Array) -> None:
    keys = jax.random.split(key, 500)
    t, sizes = stratified_timesteps(keys, 1000, num_strata)
    edges = 1 + np.concatenate([[0], np.cumsum(sizes)])
    assert t.shape == (num_strata, 500) and edges[-1] == 1000 and (sizes >= 1).all()
    assert (t >= edges[:-1, None]).all() and (t < edges[1:, None]).all()
    last = np.asarray(t[-1]) - edges[-2]  # uniform within its part
    assert abs(last.mean() - (sizes[-1] - 1) / 2) < 4 * sizes[-1] / np.sqrt(12 * 500) + 1e-9


@pytest.mark.parametrize("num_strata", [0, 1000])
def test_more_strata_than_timesteps_are_refused(num_strata: int, key: jax.Array) -> None:
    with pytest.raises(ValueError, match="need 1 to 999"):
        stratified_timesteps(jax.random.split(key, 2), 1000, num_strata)


def test_the_stratified_estimate_of_the_bound_is_unbiased(key: jax.Array) -> None:
    """Its mean over many draws is the entropy of the data, and its spread is small."""
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (4096, 16))
    keys = jax.random.split(jax.random.fold_in(key, 1), 4096)
    t, sizes = stratified_timesteps(keys, 1000, 40)
    t = jnp.concatenate([jnp.zeros((1, 4096), jnp.int32), t])
    compute = jax.jit(
        lambda x, k, t: bound_terms(
            LINEAR, denoiser(LINEAR), x, k, t, at_once=1, decoder=density_decoder
        )
    )
    terms = compute(x_0, jax.random.split(jax.random.fold_in(key, 2), 4096), t)
    weights = np.concatenate([[1.0], sizes])[:, None]
    total = prior_term(LINEAR, x_0) + (weights * np.asarray(terms.nats)).sum(axis=0)
    entropy = 0.5 * np.log(2 * np.pi * np.e * DEVIATION**2)
    error = float(total.std()) / 64
    assert float(total.mean()) == pytest.approx(entropy, abs=4 * error) and error < 0.02


def test_timesteps_at_once_are_the_same_terms(key: jax.Array) -> None:
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (5, 4))
    keys = jax.random.split(key, 5)
    t = jnp.arange(12)[:, None] * 80 + jnp.arange(5)

    @functools.partial(jax.jit, static_argnums=0)
    def compute(at_once: int):
        return bound_terms(
            LINEAR, denoiser(LINEAR), x_0, keys, t, at_once=at_once, decoder=density_decoder
        )

    for ours, theirs in zip(compute(1), compute(4), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="12 rows of timesteps cannot be evaluated 5 at once"):
        compute(5)
