"""The bound of a VAE against integrals, exact posteriors and principal components."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from diffusion import vae
from diffusion.structs import Gaussian

LEVELS = (2, 17, 256)


class Linear:
    """z ~ N(0, I), x | z ~ N(W z + b, s^2): everything about it is known."""

    def __init__(self, seed: int, size: int = 5, latents: int = 2, deviation: float = 0.4):
        rng = np.random.default_rng(seed)
        self.W, self.b, self.s = rng.normal(size=(size, latents)), rng.normal(size=size), deviation

    @property
    def covariance(self):
        return self.W @ self.W.T + self.s**2 * np.eye(len(self.b))

    def log_density(self, x):
        return multivariate_normal(self.b, self.covariance).logpdf(x)

    def posterior(self, x):
        """Mean [n, k] and covariance [k, k] of p(z | x)."""
        precision = np.eye(self.W.shape[1]) + self.W.T @ self.W / self.s**2
        covariance = np.linalg.inv(precision)
        return (x - self.b) @ self.W @ covariance / self.s**2, covariance

    def decode(self, z):
        return z @ jnp.asarray(self.W.T, jnp.float32) + jnp.asarray(self.b, jnp.float32)

    @property
    def likelihood(self):
        return vae.gaussian(256, deviation=self.s)


def some_posterior(model, x, shift=0.1, log_variance=-3.0) -> Gaussian:
    """Not the true one."""
    mean, _ = model.posterior(x)
    mean = jnp.asarray(mean + shift, jnp.float32)
    return Gaussian(mean, jnp.full(mean.shape, log_variance))


@pytest.fixture
def model() -> Linear:
    return Linear(3)


def test_the_elbo_is_the_likelihood_less_the_divergence_from_the_posterior(model, key) -> None:
    """log p(x) - ELBO = KL(q(z | x) || p(z | x)), here a divergence of full covariances."""
    x = np.random.default_rng(0).multivariate_normal(model.b, model.covariance, 3)
    q, draws = some_posterior(model, x), 40_000

    @jax.jit
    @jax.vmap
    def terms(eps):
        found = vae.elbo_terms(model.likelihood, model.decode, jnp.asarray(x), q, eps)
        return found.reconstruction + found.kl

    losses = np.asarray(terms(jax.random.normal(key, (draws, *q.mean.shape))), np.float64)
    mean, covariance = model.posterior(x)
    for i in range(3):
        divergence = vae.full_normal_kl(
            *(q.mean[i], jnp.diag(jnp.exp(q.log_variance[i]))),
            *(jnp.asarray(mean[i]), jnp.asarray(covariance)),
        )
        error = losses[:, i].std() / np.sqrt(draws)
        gap = losses[:, i].mean() + model.log_density(x[i])
        assert abs(gap - float(divergence)) < 4 * error + 1e-3
        assert error < 0.05


def test_importance_sampling_rises_to_the_likelihood(model, key) -> None:
    x = np.random.default_rng(1).multivariate_normal(model.b, model.covariance, 64)
    q = some_posterior(model, x, 0.15)
    eps = jax.random.normal(key, (4096, *q.mean.shape))
    of = functools.partial(vae.log_importance_weight, model.likelihood, model.decode)
    weights = jax.jit(jax.vmap(lambda e: of(jnp.asarray(x, jnp.float32), q, e)))(eps)
    truth = model.log_density(x).mean()
    found = [
        float(jax.jit(jax.vmap(vae.importance_weighted))(weights.reshape(-1, k, 64)).mean())
        for k in (1, 8, 64, 4096)
    ]
    assert found == sorted(found)
    assert found[0] < truth - 0.1
    assert found[-1] == pytest.approx(truth, abs=0.02)


def test_one_draw_is_the_elbo_in_the_mean(model, key) -> None:
    """log w = log p(x | z) + log p(z) - log q(z | x), whose mean has the closed-form divergence."""
    x = np.random.default_rng(2).multivariate_normal(model.b, model.covariance, 1)
    q, draws = some_posterior(model, x), 40_000
    eps = jax.random.normal(key, (draws, *q.mean.shape))
    parts = model.likelihood, model.decode, jnp.asarray(x, jnp.float32), q
    weights = jax.jit(jax.vmap(lambda e: vae.log_importance_weight(*parts, e)))(eps)
    terms = jax.jit(jax.vmap(lambda e: vae.elbo_terms(*parts, e)))(eps)
    error = float(weights.std()) / np.sqrt(draws)
    elbo = -(terms.reconstruction + terms.kl).mean()
    assert abs(float(weights.mean() - elbo)) < 4 * error


def test_training_a_linear_vae_finds_the_principal_components(key) -> None:
    """Probabilistic PCA (Tipping and Bishop 1999): the bound reaches its likelihood, W its span."""
    truth = Linear(5, size=6, latents=2, deviation=0.3)
    x = np.random.default_rng(0).multivariate_normal(truth.b, truth.covariance, 2000)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    s2 = values[:-2].mean()
    principal = vectors[:, -2:] @ np.diag(np.sqrt(values[-2:] - s2))
    best = multivariate_normal(x.mean(0), principal @ principal.T + s2 * np.eye(6)).logpdf(x).mean()
    data = jnp.asarray(x, jnp.float32)
    params = {
        "W": 0.1 * jax.random.normal(key, (2, 6)),
        "b": jnp.zeros(6),
        "V": jnp.zeros((6, 2)),
        "c": jnp.zeros(2),
        "log_variance": jnp.zeros(2),
        "log_s": jnp.zeros(()),
    }

    def loss(params, key):
        q = Gaussian(
            data @ params["V"] + params["c"], jnp.broadcast_to(params["log_variance"], (2000, 2))
        )
        z = vae.reparameterize(q, jax.random.normal(key, q.mean.shape))
        p = Gaussian(z @ params["W"] + params["b"], 2 * params["log_s"])
        log_prob = vae.normal_log_density(data, p).sum(1)
        return jnp.mean(vae.sum_per_example(vae.kl_to_prior(q)) - log_prob)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 3000))

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda p, s: jax.lax.scan(step, (p, s), jax.random.split(key, 3000)))
    (params, _), losses = run(params, optimizer.init(params))
    assert -float(losses[-200:].mean()) == pytest.approx(best, abs=0.02)
    assert float(jnp.exp(2 * params["log_s"])) == pytest.approx(s2, rel=0.05)
    span = np.linalg.qr(np.asarray(params["W"]).T)[0]
    assert np.linalg.svd(span.T @ vectors[:, -2:])[1].min() > 0.995
    np.testing.assert_allclose(  # the columns turn freely, W^T W does not
        np.linalg.eigvalsh(params["W"] @ params["W"].T), values[-2:] - s2, rtol=0.05
    )


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.3, -2.0), (-0.4, 1.5)])
def test_the_divergence_from_the_prior_is_its_integral(mean: float, log_variance: float) -> None:
    deviation = np.exp(log_variance / 2)
    q = norm(mean, deviation)
    integral = quad(lambda z: q.pdf(z) * (q.logpdf(z) - norm.logpdf(z)), *q.interval(1 - 1e-13))[0]
    found = float(vae.kl_to_prior(Gaussian(jnp.array(mean), jnp.array(log_variance))))
    assert found == pytest.approx(integral, abs=1e-6)
    formula = 0.5 * (mean**2 + deviation**2 - 2 * np.log(deviation) - 1)
    assert found == pytest.approx(formula, abs=1e-6)


def test_the_divergence_of_full_covariances(key) -> None:
    """By sampling, and as the sum of coordinates where both are diagonal."""
    rng = np.random.default_rng(0)
    m_q, m_p = rng.normal(size=(2, 3))
    roots = rng.normal(size=(2, 3, 3)) + 1.5 * np.eye(3)
    c_q, c_p = roots @ roots.swapaxes(1, 2)
    z = rng.multivariate_normal(m_q, c_q, 200_000)
    ratio = multivariate_normal(m_q, c_q).logpdf(z) - multivariate_normal(m_p, c_p).logpdf(z)
    found = float(vae.full_normal_kl(*map(jnp.asarray, (m_q, c_q, m_p, c_p))))
    assert found == pytest.approx(ratio.mean(), abs=4 * ratio.std() / np.sqrt(len(z)))
    q = Gaussian(jnp.array([0.3, -1.0]), jnp.array([-1.0, 0.5]))
    diagonal = vae.full_normal_kl(
        q.mean, jnp.diag(jnp.exp(q.log_variance)), jnp.zeros(2), jnp.eye(2)
    )
    assert float(diagonal) == pytest.approx(float(vae.kl_to_prior(q).sum()), abs=1e-5)


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("name", vae.LIKELIHOODS)
def test_discrete_likelihoods_sum_to_one_over_the_levels(name, deviation, num_levels) -> None:
    """And no other does; of one that has a deviation, whatever it is."""
    make = vae.LIKELIHOODS[name]
    takes = "deviation" in inspect.signature(make).parameters
    likelihood = make(num_levels, **{"deviation": deviation} if takes else {})
    levels = jnp.linspace(-1.0, 1.0, num_levels)[:, None]
    means = jnp.array([-1.2, 0.13, 0.99])
    rest = jnp.full((3, likelihood.outputs - 1), -2.0)
    output = jnp.concatenate([means[:, None], rest], axis=1)[:, None]
    shape = (3, num_levels, 1)
    log_prob = likelihood.log_prob(
        jnp.broadcast_to(levels, shape), jnp.broadcast_to(output, (*shape[:2], output.shape[-1]))
    )
    total = np.asarray(jnp.exp(log_prob).sum((1, 2)))
    assert likelihood.discrete == bool((abs(total - 1.0) < 1e-4).all()), total
    assert likelihood.discrete or not name.startswith("discretized")


def test_a_density_of_latents_integrates_to_one() -> None:
    likelihood = vae.gaussian(256)
    x = jnp.linspace(-8.0, 8.0, 20_001)[:, None]
    output = jnp.broadcast_to(jnp.array([0.3, -0.7]), (20_001, 2))
    total = jnp.trapezoid(jnp.exp(likelihood.log_prob(x, output))[:, 0], x[:, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-4)
    assert not likelihood.discrete


def test_the_gaussian_decoder_is_the_squared_error_up_to_a_constant(key) -> None:
    """Maximum likelihood under a fixed deviation is least squares."""
    x, one, other = jax.random.normal(key, (3, 50))
    log_prob = functools.partial(vae.gaussian(256, deviation=0.3).log_prob, x)
    difference = (log_prob(one) - log_prob(other)).sum()
    squares = jnp.square(x - other).sum() - jnp.square(x - one).sum()
    assert float(difference) == pytest.approx(float(squares) / (2 * 0.3**2), rel=1e-4)


def test_the_bernoulli_decoder_is_the_cross_entropy(key) -> None:
    """And a likelihood of black and white only."""
    white = jax.random.uniform(key, (40,))
    logits = jax.random.normal(jax.random.fold_in(key, 1), (40,))
    likelihood = vae.bernoulli(2)
    expected = -optax.sigmoid_binary_cross_entropy(logits, white)
    np.testing.assert_allclose(likelihood.log_prob(2 * white - 1, logits), expected, rtol=1e-4)
    both = jnp.exp(likelihood.log_prob(jnp.array([[-1.0], [1.0]]), jnp.array([[0.4], [0.4]])))
    assert float(both.sum()) == pytest.approx(1.0, abs=1e-6)
    assert likelihood.discrete and not vae.bernoulli(256).discrete
    np.testing.assert_allclose(likelihood.mean(logits), 2 * jax.nn.sigmoid(logits) - 1, atol=1e-6)


def test_gradients_by_reparameterization_are_unbiased(key) -> None:
    """E z^2 for z ~ N(mu, sigma^2) is mu^2 + sigma^2."""
    q = Gaussian(jnp.array(0.7), jnp.array(-0.5))
    eps = jax.random.normal(key, (200_000,))
    gradients = jax.vmap(jax.grad(lambda q, e: jnp.square(vae.reparameterize(q, e))), (None, 0))(
        q, eps
    )
    for found, truth in ((gradients.mean, 1.4), (gradients.log_variance, np.exp(-0.5))):
        error = float(found.std()) / np.sqrt(len(eps))
        assert abs(float(found.mean()) - truth) < 4 * error < 0.05


def test_sigma_is_the_deviation_and_not_the_variance(key) -> None:
    """One of the documents has z = mu + sigma^2 * eps."""
    z = vae.reparameterize(
        Gaussian(jnp.array(0.0), jnp.array(2 * np.log(3.0))), jax.random.normal(key, (100_000,))
    )
    assert float(z.std()) == pytest.approx(3.0, rel=0.01)
