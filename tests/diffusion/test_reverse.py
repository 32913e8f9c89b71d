"""Parameterizations, variances and the step from output to Prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import at, q_posterior, q_sample
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.reverse import make_denoise, predict
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Parameterization, Process
from diffusion.variances import VARIANCES
from tests.diffusion.walks import ON_CHAINS

T = 1000
TIMES = jnp.array([0, 1, 2, 50, 500, 998])


@pytest.fixture(scope="module")
def truth() -> tuple:
    """x_0, eps, x_t on the linear chain at TIMES."""
    schedule = from_betas(BETAS["linear"](T))
    one, two = jax.random.split(jax.random.key(1))
    x_0 = jax.random.uniform(one, (6, 4, 4, 3), minval=-1.0)
    eps = jax.random.normal(two, x_0.shape)
    return schedule, x_0, eps, q_sample(schedule, x_0, TIMES, eps)


@pytest.mark.parametrize("name", ON_CHAINS)
def test_decoding_the_target_gives_back_x_0(name: str, truth: tuple) -> None:
    schedule, x_0, eps, x_t = truth
    target, decode = PARAMETERIZATIONS[name][:2]
    now = at(schedule, TIMES, x_t)
    output = target(now, x_0, eps, x_t)
    error = abs(decode(now, output, x_t) - x_0)
    # Where x_0 stands in the output with a small coefficient, float32 has few digits of it.
    lost = abs(decode(now, output * (1 + 5e-7), x_t) - decode(now, output, x_t))
    assert (error <= 1e-5 + lost).all()
    assert float(error.max()) < 2e-2 and float(error[:4].max()) < 1e-3


@pytest.mark.parametrize("name", ON_CHAINS)
def test_all_parameterizations_tell_the_same_truth(name: str, truth: tuple) -> None:
    schedule, x_0, eps, x_t = truth
    parameterization = PARAMETERIZATIONS[name]
    output = parameterization.target(at(schedule, TIMES, x_t), x_0, eps, x_t)
    prediction = predict(
        Process(schedule, parameterization, VARIANCES["fixed_small"]),
        output,
        x_t,
        at(schedule, TIMES, x_t),
        threshold=thresholds.none,
    )
    posterior = q_posterior(at(schedule, TIMES, x_t), x_0, x_t)
    np.testing.assert_allclose(prediction.mean, posterior.mean, atol=1e-4)
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-2)
    np.testing.assert_allclose(prediction.log_variance, posterior.log_variance)


@pytest.mark.parametrize("name", ON_CHAINS)
def test_clipping_moves_every_mean_but_a_predicted_one(name: str, truth: tuple) -> None:
    schedule, _, _, x_t = truth
    parameterization = PARAMETERIZATIONS[name]
    output = jnp.full(x_t.shape, 3.0)

    def read(threshold):
        process = Process(schedule, parameterization, VARIANCES["fixed_large"])
        return predict(process, output, x_t, at(schedule, TIMES, x_t), threshold=threshold)

    free, clipped = read(thresholds.none), read(thresholds.clip)
    now = at(schedule, TIMES, x_t)
    for found in (free, clipped):  # eps belongs to the estimate, clipped or not
        again = now.signal * found.x_0 + now.noise * found.eps
        np.testing.assert_allclose(again, x_t, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(clipped.x_0).max()) <= 1.0 < float(jnp.abs(free.x_0).max())
    if parameterization.predicts_mean:
        np.testing.assert_array_equal(clipped.mean, output)
        np.testing.assert_array_equal(free.mean, output)
    else:
        expected = q_posterior(at(schedule, TIMES, x_t), clipped.x_0, x_t).mean
        np.testing.assert_allclose(clipped.mean, expected, rtol=1e-6)
        assert float(jnp.abs(clipped.mean - free.mean).max()) > 1e-3


def test_eps_mean_is_equation_11(truth: tuple) -> None:
    schedule, _, eps, x_t = truth
    prediction = predict(
        Process(schedule, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]),
        eps,
        x_t,
        at(schedule, TIMES, x_t),
        threshold=thresholds.none,
    )
    beta, alpha = (schedule.beta[TIMES], schedule.alpha[TIMES])
    factor = (beta / schedule.noise[TIMES]).reshape(-1, 1, 1, 1)
    mean = (x_t - factor * eps) / jnp.sqrt(alpha).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(prediction.mean, mean, atol=1e-4)


def test_fixed_variances_at_the_first_step(truth: tuple) -> None:
    schedule, _, _, x_t = truth
    large = VARIANCES["fixed_large"].log_variance(at(schedule, TIMES, x_t), None, x_t).reshape(-1)
    small = VARIANCES["fixed_small"].log_variance(at(schedule, TIMES, x_t), None, x_t).reshape(-1)
    assert float(large[0]) == pytest.approx(-9.8167, abs=1e-4) == float(small[0])
    np.testing.assert_allclose(large[1:], jnp.log(schedule.beta[TIMES[1:]]), rtol=1e-6)
    np.testing.assert_allclose(
        small[1:], jnp.log(schedule.posterior_variance[TIMES[1:]]), rtol=1e-6
    )
    assert (large >= small).all()


def test_learned_range_spans_the_two_fixed_variances(truth: tuple) -> None:
    schedule, _, _, x_t = truth
    read = VARIANCES["learned_range"].log_variance
    ones, now = jnp.ones_like(x_t), at(schedule, TIMES, x_t)
    np.testing.assert_allclose(
        read(now, ones, x_t)[:, 0, 0, 0], jnp.log(schedule.beta[TIMES]), rtol=1e-6
    )
    np.testing.assert_allclose(
        read(now, -ones, x_t)[:, 0, 0, 0], schedule.posterior_log_variance[TIMES]
    )
    np.testing.assert_array_equal(
        VARIANCES["learned"].log_variance(at(schedule, TIMES, x_t), ones * 0.7, x_t), ones * 0.7
    )


@pytest.mark.parametrize("name", VARIANCES)
def test_outputs_of_another_width_are_refused(name: str, truth: tuple) -> None:
    schedule, _, _, x_t = truth
    variance = VARIANCES[name]
    wrong = jnp.zeros((*x_t.shape[:-1], 3 * (2 - variance.extra_channels)))
    with pytest.raises(ValueError, match=r"returned shape .* needs .*output"):
        predict(
            Process(schedule, PARAMETERIZATIONS["eps"], variance),
            wrong,
            x_t,
            at(schedule, TIMES, x_t),
            threshold=thresholds.clip,
        )


@pytest.mark.parametrize("name", ON_CHAINS)
def test_what_needs_signal_refuses_a_chain_that_ends_in_pure_noise(name: str) -> None:
    schedule = from_betas(BETAS["jsd"](10))
    parameterization: Parameterization = PARAMETERIZATIONS[name]

    def make():
        def apply(params, x_t, t):
            return jnp.zeros_like(x_t)

        return make_denoise(
            apply,
            Process(schedule, parameterization, VARIANCES["fixed_small"]),
            threshold=thresholds.none,
        )

    if parameterization.needs_signal:
        with pytest.raises(ValueError, match=r"0 at t = 9.*Choose .* or a schedule") as refusal:
            make()
        others = [name for name, each in PARAMETERIZATIONS.items() if not each.needs_signal]
        assert f"Choose {' or '.join(others)}, or" in str(refusal.value)
    else:
        prediction = make()(None, jnp.ones((2, 3)), jnp.array([9, 9]))
        assert all(jnp.isfinite(leaf).all() for leaf in prediction)


def test_the_network_is_told_the_original_timesteps() -> None:
    from diffusion.schedules import respace

    schedule = respace(BETAS["linear"](100), [5, 40, 99])
    told = []

    def apply(params: None, x_t: jax.Array, t: jax.Array) -> jax.Array:
        told.append(t.tolist())
        return x_t

    denoise = make_denoise(
        apply,
        Process(schedule, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"]),
        threshold=thresholds.none,
    )
    denoise(None, jnp.zeros((3, 2)), jnp.array([0, 1, 2]))
    denoise(None, jnp.zeros((3, 2)), jnp.array(1))
    assert told == [[5, 40, 99], [40, 40, 40]]
