import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.forward import at, q_marginal, q_posterior, q_sample, q_step, snr
from diffusion.schedules import BETAS, from_betas

SCHEDULE = from_betas(BETAS["linear"](1000))


def test_a_chain_of_single_steps_is_the_closed_form() -> None:
    """Mean and variance carried through q(x_t | x_{t-1}) step by step equal q(x_t | x_0)."""
    x_0 = jnp.array([-1.0, 0.25, 1.0])

    def step(carry, t):
        mean, variance = carry
        one = q_step(SCHEDULE, mean, t)
        slope = jnp.sqrt(SCHEDULE.alpha[t])
        carry = one.mean, slope**2 * variance + jnp.exp(one.log_variance)
        return carry, carry

    times = jnp.arange(1000)
    _, (means, variances) = jax.lax.scan(step, (x_0, jnp.zeros(3)), times)
    closed = jax.vmap(lambda t: q_marginal(SCHEDULE, x_0, t))(times)
    np.testing.assert_allclose(means, closed.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        variances, jnp.broadcast_to(jnp.exp(closed.log_variance), variances.shape), rtol=1e-4
    )


def test_q_sample_draws_from_the_marginal(key: jax.Array) -> None:
    x_0, t = jnp.full((200_000, 1), 0.7), jnp.full(200_000, 300)
    x_t = q_sample(SCHEDULE, x_0, t, jax.random.normal(key, x_0.shape))
    closed = q_marginal(SCHEDULE, x_0[:1], jnp.array(300))
    assert float(x_t.mean()) == pytest.approx(closed.mean.item(), abs=0.01)
    assert float(x_t.var()) == pytest.approx(jnp.exp(closed.log_variance).item(), rel=0.02)


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
@pytest.mark.parametrize("t", [1, 10, 99])
def test_the_posterior_is_bayes_rule(name: str, t: int) -> None:
    """q(x_{t-1} | x_t, x_0) on a fine grid from q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    schedule = from_betas(BETAS[name](100))
    x_0, x_t = 0.4, -0.8
    grid = np.linspace(-12, 12, 2_000_001)
    prior_mean = np.sqrt(float(schedule.alpha_bar_prev[t])) * x_0
    prior_var = float(schedule.noise_variance[t - 1])
    log_p = -0.5 * (grid - prior_mean) ** 2 / prior_var
    log_p += -0.5 * (x_t - np.sqrt(float(schedule.alpha[t])) * grid) ** 2 / float(schedule.beta[t])
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = (p * grid).sum()
    variance = (p * (grid - mean) ** 2).sum()
    posterior = q_posterior(
        at(schedule, jnp.array(t), jnp.zeros(1)), jnp.array([x_0]), jnp.array([x_t])
    )
    assert posterior.mean.item() == pytest.approx(mean, abs=2e-5)
    assert jnp.exp(posterior.log_variance).item() == pytest.approx(variance, rel=1e-4)


def test_the_posterior_at_the_first_step_is_x_0() -> None:
    x_0, x_t = jnp.array([[0.3]]), jnp.array([[5.0]])
    posterior = q_posterior(at(SCHEDULE, jnp.array([0]), x_t), x_0, x_t)
    assert posterior.mean.item() == pytest.approx(0.3)
    assert posterior.log_variance.item() == pytest.approx(
        float(jnp.log(SCHEDULE.posterior_variance[1]))
    )


@pytest.mark.parametrize("shape", [(4, 2), (4, 8, 8, 3), (4,)])
def test_at_broadcasts_against_any_rank(shape: tuple[int, ...]) -> None:
    like, t = jnp.zeros(shape), jnp.array([0, 5, 9, 999])
    rows = at(SCHEDULE, t, like).beta
    assert rows.shape == (4,) + (1,) * (len(shape) - 1)
    np.testing.assert_array_equal(rows.reshape(4), SCHEDULE.beta[t])
    assert at(SCHEDULE, jnp.array(7), like).beta.shape == (1,) * len(shape)


def test_snr_falls_to_nothing() -> None:
    ratio = snr(SCHEDULE)
    assert (jnp.diff(ratio) < 0).all() and float(ratio[-1]) < 1e-4


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(Exception, match="eps"):
        q_sample(SCHEDULE, jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros((2, 4)))
