"""The other forms of the bound: the same mean, and what their names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import dblquad, quad

from diffusion import bound_forms, thresholds
from diffusion.forward import at, q_marginal, q_sample, q_step
from diffusion.likelihood import bound_terms, exact_decoder, normal_kl, prior_term
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.random import normal
from diffusion.reverse import predict
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Gaussian, Likelihood, Prediction, Process
from diffusion.vae import elbo_terms, normal_log_density, reparameterize
from diffusion.variances import VARIANCES
from tests.diffusion.gaussian import DEVIATION, MEAN, best_network, exact_variance

SHORT = from_betas(np.linspace(0.02, 0.4, 12))


def denoiser(schedule, predicts="eps", variance=VARIANCES["fixed_large"]):
    """The best network under a variance that by default is not the true one."""
    parameterization = PARAMETERIZATIONS[predicts]
    process = Process(schedule, parameterization, variance)
    network = best_network(schedule, parameterization)

    def denoise(x_t, t):
        output = network(None, x_t, jnp.broadcast_to(t, x_t.shape[:1]))
        return predict(process, output, x_t, at(schedule, t, x_t), threshold=thresholds.none)

    return denoise


def both_forms(key, schedule, count=40_000):
    """[count] sums of the divergences of Eq. 5, with L_T, and of the consistency form."""
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (count, 1))
    keys, times = jax.random.split(key, count), jnp.arange(schedule.num_timesteps)
    denoise = denoiser(schedule)

    @jax.jit
    def sums(x_0, keys):
        rows = times[1:, None].repeat(count, 1)
        rearranged = bound_terms(schedule, denoise, x_0, keys, rows).nats
        consistent = bound_forms.consistency_terms(schedule, denoise, x_0, keys, times)
        return rearranged.sum(0) + prior_term(schedule, x_0), consistent.sum(0)

    return [np.asarray(found, np.float64) for found in sums(x_0, keys)]


def test_the_consistency_form_has_the_mean_of_equation_5_and_more_variance(key) -> None:
    rearranged, consistent = both_forms(key, SHORT)
    error = np.sqrt((rearranged.var() + consistent.var()) / len(consistent))
    assert abs(rearranged.mean() - consistent.mean()) < 4 * error
    assert error < 0.02
    assert consistent.var() > 1.5 * rearranged.var()


def along_paths(schedule, x_0, key, **options):
    """[count] of Eq. 5 and of the consistency form along one path each, L_0 a density."""
    keys, denoise = jax.random.split(key, len(x_0)), denoiser(schedule, **options)

    @jax.jit
    def sums(x_0):
        forms = bound_forms.along_a_path
        return forms(schedule, denoise, x_0, keys, decoder=normal_log_density)

    return [np.asarray(found, np.float64) for found in sums(x_0)]


def test_along_one_path_the_consistency_form_varies_less(key) -> None:
    """Though every term of it varies more with a draw of its own; the mean is the same."""
    schedule = from_betas(np.linspace(0.1, 0.6, 8))
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (40_000, 1))
    closed, ratios = along_paths(schedule, x_0, key)
    error = (closed - ratios).std() / np.sqrt(len(x_0))
    assert abs((closed - ratios).mean()) < 4 * error and error < 0.02
    assert ratios.var() < 0.8 * closed.var()
    rearranged, consistent = both_forms(key, schedule)
    assert consistent.var() > 1.5 * rearranged.var()


def test_along_a_path_of_the_true_reverse_process_the_ratios_are_the_likelihood(key) -> None:
    """But for the divergence at the end, which is small; Eq. 5 keeps the noise of every x_t."""
    schedule = from_betas([0.3, 0.5, 0.7, 0.9, 0.9999])
    values = jnp.array([-0.5, 0.3, 1.1])
    closed, ratios = along_paths(
        schedule, jnp.repeat(values, 2000)[:, None], key, variance=exact_variance()
    )
    truth = 0.5 * (
        np.log(2 * np.pi * DEVIATION**2) + ((np.asarray(values) - MEAN) / DEVIATION) ** 2
    )
    np.testing.assert_allclose(ratios.reshape(3, -1), truth[:, None].repeat(2000, 1), atol=0.1)
    assert closed.reshape(3, -1).std(axis=1).min() > 5 * ratios.reshape(3, -1).std(axis=1).max()


def test_a_chain_of_one_step_is_a_vae(key) -> None:
    """T = 1: q(x_1 | x_0) is the encoder, the prior N(0, I), p(x_0 | x_1) the decoder."""
    schedule = from_betas([0.7])
    x_0 = jnp.round(jax.random.uniform(key, (64, 5), minval=-1.0, maxval=1.0) * 127.5) / 127.5
    keys = jax.random.split(key, 64)
    denoise = denoiser(schedule)
    first = jnp.zeros((1, 64), jnp.int32)
    diffusion = bound_terms(schedule, denoise, x_0, keys, first, decoder=exact_decoder).nats[0]
    diffusion += prior_term(schedule, x_0)

    def decode(x_1):
        prediction = denoise(x_1, jnp.zeros(64, jnp.int32))
        return jnp.stack([prediction.mean, jnp.broadcast_to(prediction.log_variance, x_1.shape)])

    likelihood = Likelihood(
        2, lambda x, p: exact_decoder(x, Gaussian(*p)), lambda p: p[0], discrete=True
    )
    q = q_marginal(schedule, x_0, jnp.zeros(64, jnp.int32))
    q = Gaussian(q.mean, jnp.broadcast_to(q.log_variance, x_0.shape))
    terms = elbo_terms(likelihood, decode, x_0, q, normal(keys, 0, (5,)))
    np.testing.assert_allclose(
        diffusion, (terms.reconstruction + terms.kl) / 5, rtol=2e-5, atol=1e-5
    )


def test_the_consistency_form_begins_at_x_0(key) -> None:
    """Of two large steps, the first of which leaves less than half of the signal."""
    rearranged, consistent = both_forms(key, from_betas([0.8, 0.3]))
    error = np.sqrt((rearranged.var() + consistent.var()) / len(consistent))
    assert abs(rearranged.mean() - consistent.mean()) < 4 * error < 0.04


def _falling(x_t, t):
    """A model whose mean of x_{t-1} falls as x_t rises, as that of the reverse process never does.

    Of the width of one that knows nothing, so that all numbers stay small.
    """
    return Prediction(x_t, x_t, -0.5 * x_t, jnp.zeros(()))


@pytest.mark.parametrize(("model", "sign"), [(denoiser(SHORT), 1), (_falling, -1)])
def test_divergences_of_neighbours_are_not_the_bound(key, model, sign: int) -> None:
    """What texts write in its place: KL(q(x_t | x_{t-1}) || p(x_t | x_{t+1})) of a path.

    It differs by E cov(x_t, mu(x_{t+1}) | x_{t-1}) / sigma^2: larger near the reverse process, and
    smaller for a model that is far from it.
    """
    count, t = 40_000, 5
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (count, 1))
    keys, times = jax.random.split(key, count), jnp.full(count, t)

    @jax.jit
    def both(x_0, eps):
        terms = bound_forms.consistency_terms(SHORT, model, x_0, keys, times[:1])[0]
        forward = q_step(SHORT, q_sample(SHORT, x_0, times - 1, eps[0]), times)
        x_after = reparameterize(q_step(SHORT, reparameterize(forward, eps[1]), times + 1), eps[2])
        back = model(x_after, times + 1)
        return terms, normal_kl(forward, Gaussian(back.mean, back.log_variance))[:, 0]

    eps = jax.random.normal(jax.random.fold_in(key, 1), (3, count, 1))
    found, divergence = (np.asarray(values, np.float64) for values in both(x_0, eps))
    back = model(jnp.array([[0.0], [1.0]]), jnp.full(2, t + 1))  # its mean is affine in x
    slope, variance = np.diff(back.mean[:, 0]).item(), float(jnp.exp(back.log_variance).mean())
    expected = slope * float(jnp.sqrt(SHORT.alpha[t + 1]) * SHORT.beta[t]) / variance
    difference = divergence.mean() - found.mean()
    error = np.sqrt((divergence.var() + found.var()) / count)
    assert abs(difference - expected) < 4 * error, (difference, expected, error)
    assert sign * expected > 5 * error


@pytest.mark.parametrize("place", [0.7, 0.9])
def test_the_entropy_of_a_step_back_lies_between_those_of_the_fixed_variances(place: float) -> None:
    """By quadrature, for a mixture whose variance is 1."""
    schedule = from_betas(np.linspace(0.05, 0.3, 5))
    t, spread = 3, np.sqrt(1.0 - place**2)
    alpha, before = float(schedule.alpha[t]), float(schedule.alpha_bar_prev[t])

    def density(x, scale, noise):
        deviation = np.sqrt(scale * spread**2 + noise)
        means = np.array([-place, place]) * np.sqrt(scale)
        return np.mean(np.exp(-0.5 * ((x - means) / deviation) ** 2)) / (
            deviation * np.sqrt(2 * np.pi)
        )

    def joint(y, x):
        step = np.exp(-0.5 * (y - np.sqrt(alpha) * x) ** 2 / (1 - alpha))
        p = density(x, before, 1 - before) * step / np.sqrt(2 * np.pi * (1 - alpha))
        return -p * np.log(p + 1e-300)

    of_both = dblquad(joint, -6, 6, -6, 6, epsabs=1e-6, epsrel=1e-6)[0]

    def single(x):
        p = density(x, before * alpha, 1 - before * alpha)
        return -p * np.log(p)

    entropy = of_both - quad(single, -8, 8)[0]
    lower, upper = bound_forms.entropy_bounds(schedule)
    assert lower[t] + 1e-3 < entropy < upper[t] - 1e-4


def test_entropy_bounds_are_reached_by_a_point_and_by_normal_data() -> None:
    """The variances of section 8 of docs/theory.md with s = 0 and s = 1."""
    lower, upper = bound_forms.entropy_bounds(SHORT)
    for name, bound in (("fixed_small", lower), ("fixed_large", upper)):
        variance = VARIANCES[name].log_variance(SHORT, None, None)
        np.testing.assert_allclose(
            0.5 * (np.log(2 * np.pi * np.e) + np.asarray(variance))[1:], bound[1:], rtol=1e-5
        )


def test_the_logarithm_is_the_least_of_its_tangents() -> None:
    x = jnp.linspace(0.05, 5.0, 50)
    lines = bound_forms.tangent(x[:, None], jnp.geomspace(0.1, 30.0, 4000)[None])
    assert (lines >= jnp.log(x)[:, None] - 1e-6).all()
    np.testing.assert_allclose(lines.min(1), jnp.log(x), atol=1e-5)
    np.testing.assert_allclose(bound_forms.tangent(x, 1.0 / x), jnp.log(x), atol=1e-5)


def test_learned_betas_give_the_same_tables() -> None:
    betas = BETAS["linear"](100, 1e-3, 0.2)
    raw = jnp.asarray(np.log(betas) - np.log1p(-betas), jnp.float32)
    expected, found = from_betas(betas), bound_forms.learned_betas(raw)
    for name, table in expected._asdict().items():
        if table is not None:
            other = getattr(found, name)
            np.testing.assert_allclose(other, table, rtol=3e-5, atol=1e-7, err_msg=name)


def test_the_gradient_of_the_bound_reaches_the_betas(key) -> None:
    """Equal to a difference quotient, and following it lowers the bound of a network that is off.

    With the best network of a fixed variance, where the reverse step is not exact.
    """
    x_0 = MEAN + DEVIATION * jax.random.normal(key, (512, 1))
    keys = jax.random.split(key, 512)
    raw = jnp.full(6, float(np.log(0.1 / 0.9)))  # a chain that does not end in noise

    @jax.jit
    def bound(raw):
        schedule = bound_forms.learned_betas(raw)
        rows = jnp.arange(6)[:, None].repeat(512, 1)
        terms = bound_terms(schedule, denoiser(schedule, predicts="x_0"), x_0, keys, rows).nats
        return (terms.sum(0) + prior_term(schedule, x_0)).mean()

    slope, step = jax.jit(jax.grad(bound)), 1e-2
    gradient = slope(raw)
    for i in range(6):
        shift = step * jnp.eye(6)[i]
        quotient = (bound(raw + shift) - bound(raw - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[i], quotient, rtol=0.05, atol=2e-3)
    lower = raw
    for _ in range(50):
        lower -= 0.1 * slope(lower)
    assert bound(lower) < bound(raw) - 0.05


@pytest.mark.parametrize(("beta", "peaks"), [(0.02, 1), (0.95, 2)])
def test_a_small_step_back_has_one_peak_and_a_large_one_several(beta: float, peaks: int) -> None:
    """At the middle of a mixture of two, the hardest place."""
    x = jnp.linspace(-4, 4, 4001)
    parts = (jnp.array([0.5, 0.5]), jnp.array([-1.0, 1.0]), jnp.array([0.3, 0.3]))
    density = np.asarray(bound_forms.reverse_conditional(*parts, 0.45, beta, x))
    np.testing.assert_allclose(np.trapezoid(density, x), 1.0, rtol=1e-4)
    rising = np.diff(density) > 0
    high = density[1:-1] > 0.02 * density.max()
    assert (rising[:-1] & ~rising[1:] & high).sum() == peaks
