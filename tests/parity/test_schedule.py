"""The schedule's tables, the posterior and one ancestral step against diffusers' DDPMScheduler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with diffusers needs the parity extra")
diffusers = pytest.importorskip(
    "diffusers", reason="comparing with diffusers needs the parity extra"
)

from diffusion import thresholds  # noqa: E402
from diffusion.parameterizations import PARAMETERIZATIONS  # noqa: E402
from diffusion.paths import levels_of  # noqa: E402
from diffusion.reverse import make_denoise  # noqa: E402
from diffusion.samplers import SAMPLERS  # noqa: E402
from diffusion.schedules import BETAS, from_betas, respace  # noqa: E402
from diffusion.spacings import uniform  # noqa: E402
from diffusion.structs import Process, Schedule  # noqa: E402
from diffusion.variances import VARIANCES  # noqa: E402

pytestmark = pytest.mark.parity

T = 1000
SCHEDULES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}


def scheduler(name: str, **options: object):
    """Their scheduler with its products in float64: in float32 they lose up to 2e-4 relative."""
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=T, beta_schedule=SCHEDULES[name], **options
    )
    betas = torch.from_numpy(BETAS[name](T))
    torch.testing.assert_close(theirs.betas.double(), betas, rtol=2e-6, atol=2e-8)
    exact = torch.cumprod(1.0 - betas, dim=0)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), exact, rtol=1e-4, atol=1e-9)
    theirs.alphas_cumprod, theirs.one = exact, torch.tensor(1.0, dtype=torch.float64)
    return theirs


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_equal_diffusers(name: str):
    theirs, ours = scheduler(name), from_betas(BETAS[name](T))
    np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod, rtol=1e-6)
    small = [float(theirs._get_variance(t, variance_type="fixed_small")) for t in range(1, T)]
    large = [float(theirs._get_variance(t, variance_type="fixed_large")) for t in range(T)]
    np.testing.assert_allclose(ours.posterior_variance[1:], small, rtol=1e-6)
    np.testing.assert_allclose(ours.posterior_log_variance[1:], np.log(small), rtol=1e-6)
    np.testing.assert_allclose(ours.log_beta, np.log(large), rtol=1e-6)


def compare_steps(
    theirs, schedule: Schedule, steps: list[int], prediction: str, variance: str, threshold: Any
) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    x_t, output = draw.standard_normal((2, 2, 4, 4, 3)).astype(np.float32)
    denoise = make_denoise(
        lambda params, x, t: params,
        Process(schedule, PARAMETERIZATIONS[prediction], VARIANCES[variance]),
        threshold=threshold,
    )
    sampler = SAMPLERS["ancestral"](levels_of(schedule))
    for t in steps:
        model_t = int(schedule.told[t])
        # Both sides get the noise that their generator draws.
        noise = torch.randn(x_t.shape, dtype=torch.float64, generator=torch.manual_seed(t))
        expected = theirs.step(
            torch.from_numpy(output).double(),
            model_t,
            torch.from_numpy(x_t).double(),
            generator=torch.manual_seed(t),
        )
        actual, estimate, *_ = sampler.step(
            lambda x, t: denoise(jnp.asarray(output), x, t),
            jnp.asarray(x_t),
            jnp.int32(t),
            lambda _, noise=noise: jnp.asarray(noise.numpy(), jnp.float32),
            (),
        )
        # Reading x_0 out of eps divides float32's rounding by sqrt(alpha_bar), clipped or not.
        scale = 1.0 / float(schedule.signal[t]) if prediction == "eps" else 1.0
        np.testing.assert_allclose(
            estimate, expected.pred_original_sample, rtol=0, atol=1e-6 * scale
        )
        np.testing.assert_allclose(actual, expected.prev_sample, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_step_equals_diffusers(name: str, prediction: str, variance: str, clip: bool):
    theirs = scheduler(
        name, variance_type=variance, prediction_type=PREDICTIONS[prediction], clip_sample=clip
    )
    schedule = from_betas(BETAS[name](T))
    threshold = thresholds.clip if clip else thresholds.none
    compare_steps(theirs, schedule, [0, 1, 2, 500, 998, 999], prediction, variance, threshold)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_respaced_ancestral_step_equals_diffusers(variance: str):
    theirs = scheduler("linear", variance_type=variance, timestep_spacing="linspace")
    theirs.set_timesteps(50)
    keep = uniform(T, 50)
    np.testing.assert_array_equal(keep, theirs.timesteps.numpy()[::-1])
    # Told only the number of steps, their scheduler takes t - T // N for the step before t, which
    # these timesteps are not; told the timesteps, it looks there.
    theirs.set_timesteps(timesteps=keep[::-1].tolist())
    schedule = respace(BETAS["linear"](T), keep)
    compare_steps(theirs, schedule, [0, 1, 25, 49], "eps", variance, thresholds.clip)


def test_q_sample_equals_diffusers():
    from diffusion.forward import q_sample

    theirs, schedule = scheduler("linear"), from_betas(BETAS["linear"](T))
    draw = np.random.Generator(np.random.PCG64(0))
    x_0, eps = draw.standard_normal((2, 4, 4, 4, 3)).astype(np.float32)
    t = np.array([0, 1, 500, 999])
    expected = theirs.add_noise(
        torch.from_numpy(x_0).double(), torch.from_numpy(eps).double(), torch.from_numpy(t)
    )
    np.testing.assert_allclose(
        jax.jit(q_sample)(schedule, x_0, t, eps), expected, rtol=0, atol=1e-6
    )
