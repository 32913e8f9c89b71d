import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.forward import at
from diffusion.likelihood import (
    DECODERS,
    exact_decoder,
    normal_kl,
    tanh_decoder,
    to_bits_per_dim,
    vlb_term,
)
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Gaussian, Prediction

LEVELS = jnp.linspace(-1.0, 1.0, 256)


def test_kl_is_zero_for_equals_and_grows_with_distance() -> None:
    p = Gaussian(jnp.array(0.3), jnp.array(-2.0))
    assert float(normal_kl(p, p)) == 0.0
    far = [float(normal_kl(Gaussian(jnp.array(m), p.log_variance), p)) for m in (0.4, 0.6, 1.0)]
    assert 0 < far[0] < far[1] < far[2]


@pytest.mark.parametrize(("q", "p"), [((0.0, 0.0), (1.0, 0.7)), ((-2.0, -3.0), (-1.9, -3.1))])
def test_kl_equals_its_integral(q: tuple, p: tuple) -> None:
    grid = np.linspace(-15, 15, 400_001)
    log_q = stats.norm.logpdf(grid, q[0], np.exp(q[1] / 2))
    log_p = stats.norm.logpdf(grid, p[0], np.exp(p[1] / 2))
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), grid)
    kl = normal_kl(Gaussian(*map(jnp.asarray, q)), Gaussian(*map(jnp.asarray, p)))
    assert float(kl) == pytest.approx(integral, rel=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.997, 1.0])
@pytest.mark.parametrize("log_variance", [-12.0, -9.8, -4.0, 0.0, 4.0])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_the_decoder_sums_to_one_over_the_levels(
    name: str, mean: float, log_variance: float, num_levels: int
) -> None:
    p = Gaussian(jnp.array(mean), jnp.array(log_variance))
    levels = jnp.linspace(-1.0, 1.0, num_levels)
    chance = jnp.exp(DECODERS[name](levels, p, num_levels))
    assert float(chance.sum()) == pytest.approx(1.0, abs=5e-5)


def test_fewer_than_two_levels_are_refused() -> None:
    zero = jnp.zeros(())
    with pytest.raises(ValueError, match="num_levels = 1 is not possible"):
        exact_decoder(zero, Gaussian(zero, zero), 1)


@pytest.mark.parametrize("log_variance", [-10.0, -6.0, -2.0, 1.0])
def test_the_exact_decoder_is_the_normal_distribution(log_variance: float) -> None:
    mean, std = 0.13, np.exp(log_variance / 2)
    values = np.linspace(-1, 1, 256)
    upper = np.where(values > 0.999, np.inf, values + 1 / 255)
    lower = np.where(values < -0.999, -np.inf, values - 1 / 255)
    # In whichever tail the difference does not cancel.
    right = stats.norm.sf(lower, mean, std) - stats.norm.sf(upper, mean, std)
    left = stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std)
    expected = np.where(values > mean, right, left)
    p = Gaussian(jnp.array(mean), jnp.array(log_variance))
    actual = np.asarray(exact_decoder(LEVELS, p), np.float64)
    seen = expected > 1e-300
    np.testing.assert_allclose(actual[seen], np.log(expected[seen]), rtol=2e-3, atol=2e-4)


def test_the_tanh_decoder_is_the_originals_formula() -> None:
    """In float64, from cdf(z) = (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2, floored."""
    mean, log_variance = -0.4, -7.0

    def cdf(z: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    values, std = np.linspace(-1, 1, 256), np.exp(log_variance / 2)
    upper, lower = cdf((values - mean + 1 / 255) / std), cdf((values - mean - 1 / 255) / std)
    inner = np.where(values < -0.999, upper, np.where(values > 0.999, 1 - lower, upper - lower))
    # The difference of two numbers near 1 keeps no digit below 1e-16 even here.
    expected = np.log(np.maximum(inner, 1e-12))
    p = Gaussian(jnp.array(mean), jnp.array(log_variance))
    seen = inner > 1e-10
    assert 20 < seen.sum() < 250
    actual = np.asarray(tanh_decoder(LEVELS, p))
    np.testing.assert_allclose(actual[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert actual.min() == pytest.approx(np.log(1e-12))


def test_how_far_the_two_forms_are_apart() -> None:
    """The approximation of the distribution function is good to 5e-4, which tells in the tails."""
    std = np.exp(-9.8167 / 2)  # the decoder's deviation under the linear schedule
    residuals = jnp.arange(7.0) * std
    p = Gaussian(residuals, jnp.array(2 * np.log(std)))
    exact, tanh = exact_decoder(jnp.zeros(7), p), tanh_decoder(jnp.zeros(7), p)
    assert float(jnp.abs(jnp.exp(exact) - jnp.exp(tanh)).max()) < 1e-3
    gap = jnp.abs(to_bits_per_dim(exact - tanh))
    assert (gap[:3] < 0.03).all() and float(gap[5]) > 1.0


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("log_variance", [-200.0, -60.0, -9.8, 0.0, 60.0, 200.0])
def test_the_decoder_and_its_gradients_are_finite_everywhere(
    name: str, log_variance: float
) -> None:
    x_0 = jnp.array([-1.0, -127 / 255, 1 / 255, 253 / 255, 1.0])

    def total(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        return DECODERS[name](x_0, Gaussian(mean, log_variance)).sum()

    for mean in (-3.0, -1.0, 1 / 255, 1.0, 50.0):
        value, gradients = jax.value_and_grad(total, (0, 1))(
            jnp.full(5, mean), jnp.full(5, log_variance)
        )
        assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


def test_the_first_term_is_the_decoder_and_the_others_are_divergences() -> None:
    schedule = from_betas(BETAS["linear"](50))
    x_0 = jnp.zeros((3, 4)) + 1 / 255
    t = jnp.array([0, 1, 49])
    wide = jnp.zeros((3, 4))
    prediction = Prediction(x_0=wide, eps=wide, mean=wide + 0.1, log_variance=wide - 3.0)
    term = vlb_term(at(schedule, t, x_0), prediction, x_0, x_0)
    p = Gaussian(prediction.mean, prediction.log_variance)
    assert float(term[0]) == pytest.approx(float(-tanh_decoder(x_0, p)[0].mean()))
    assert (term[1:] > 0).all()
    other = vlb_term(at(schedule, t, x_0), prediction, x_0, x_0, decoder=exact_decoder)
    np.testing.assert_array_equal(other[1:], term[1:])
    assert float(other[0]) != float(term[0])


def test_one_bit_is_ln_2_nats() -> None:
    assert float(to_bits_per_dim(jnp.log(jnp.array(256.0)))) == pytest.approx(8.0)
