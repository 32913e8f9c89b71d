import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import random, thresholds
from diffusion.networks.unet import UNet
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import levels_of
from diffusion.reverse import make_denoise
from diffusion.samplers import ancestral, ddim
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Prediction, Process, Sampler, Step
from diffusion.variances import VARIANCES
from diffusion.walk import begin, end, walk
from tests.diffusion.networks.small import shaken, small
from tests.diffusion.walks import sample

SCHEDULE = from_betas(BETAS["linear"](20, beta_start=5e-3, beta_end=0.5))


def make(apply):
    return make_denoise(
        apply,
        Process(SCHEDULE, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]),
        threshold=thresholds.clip,
    )


@pytest.fixture(scope="module")
def network():
    """A small U-Net whose output is not zero: (denoise with parameters bound)."""
    unet = small(UNet, {}, out_channels=1)
    params, denoise = shaken(unet), make(unet.apply)
    return lambda x_t, t: denoise(params, x_t, t)


@functools.cache
def drawn(network, record: tuple[int, ...]):
    """keys -> Samples, compiled."""
    return jax.jit(
        lambda k: sample(ancestral(levels_of(SCHEDULE)), network, k, (8, 8, 1), record=record)
    )


def draw(network, indices, record: tuple[int, ...] = ()):
    keys = random.per_index(random.stream(0, "sample"), jnp.asarray(indices))
    return drawn(network, record)(keys)


def test_a_sample_does_not_depend_on_its_batch(network) -> None:
    together, order = draw(network, range(8)).x_0, jnp.array([5, 3, 0, 9, 7, 11, 2, 1])
    np.testing.assert_allclose(draw(network, [3]).x_0[0], together[3], atol=2e-5)
    other, known = draw(network, order).x_0, order < 8
    np.testing.assert_allclose(other[known], together[order[known]], atol=2e-5)
    assert float(jnp.abs(together[0] - together[1]).max()) > 0.1


def test_samples_do_not_depend_on_the_number_of_devices(network, all_devices: None) -> None:
    from experiments import devices

    one = draw(network, range(8)).x_0
    mesh = devices.make_mesh()
    assert mesh.size == 8
    keys = random.per_index(random.stream(0, "sample"), jnp.arange(8))
    run = jax.jit(
        lambda k: sample(ancestral(levels_of(SCHEDULE)), network, k, (8, 8, 1)).x_0,
        in_shardings=devices.sharded(mesh),
        out_shardings=devices.sharded(mesh),
    )
    eight = run(jax.device_put(keys, devices.sharded(mesh)))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(eight, one, atol=2e-5)


def test_recording_changes_nothing_and_keeps_what_was_asked(network) -> None:
    plain = draw(network, range(8))
    recorded = draw(network, range(8), record=(19, 7, 0))
    np.testing.assert_allclose(recorded.x_0, plain.x_0, atol=2e-5)
    assert plain.progress.shape == (0, 8, 8, 8, 1) and recorded.progress.shape == (3, 8, 8, 8, 1)
    # The last step adds no noise: the sample is the mean, which at t = 0 is the estimate itself.
    np.testing.assert_allclose(recorded.progress[2], recorded.x_0, atol=1e-5)
    only = draw(network, range(8), record=(7,))
    np.testing.assert_allclose(only.progress[0], recorded.progress[1], atol=2e-5)


def test_memory_grows_with_the_record_and_not_with_the_chain() -> None:
    image = (64, 64, 3)
    size = 4 * 64 * 64 * 3 * 4

    def temporary(steps: int, record: tuple[int, ...]) -> int:
        schedule = from_betas(BETAS["linear"](steps, beta_end=0.05))
        denoise = make_denoise(
            lambda params, x_t, t: 0.1 * x_t,
            Process(schedule, PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]),
            threshold=thresholds.clip,
        )
        run = jax.jit(
            lambda k: sample(
                ancestral(levels_of(schedule)),
                lambda x, t: denoise(None, x, t),
                k,
                image,
                record=record,
            )
        )
        memory = run.lower(jax.random.split(jax.random.key(0), 4)).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    short, long = temporary(20, ()), temporary(200, ())
    assert abs(long - short) < size
    recorded = temporary(200, tuple(range(0, 200, 20)))
    assert 9 * size < recorded - long < 32 * size


@pytest.mark.parametrize("record", [(20,), (-1,), (3, 3)])
def test_impossible_records_are_refused(record: tuple) -> None:
    with pytest.raises(ValueError, match=r"record = .* different timesteps in \[0, 20\)"):
        drawn(make(lambda params, x_t, t: x_t), record)(jax.random.split(jax.random.key(0), 1))


def test_x_T_is_the_same_for_every_length_and_no_other_noise_repeats_it() -> None:
    keys = random.per_index(random.stream(0, "sample"), jnp.arange(2))

    def unchanged(x_t, t):
        return Prediction(x_t, x_t, x_t, jnp.zeros(()))

    def noises(steps: int) -> np.ndarray:
        """f32[1 + 4 steps, 2]: the first value of x_T and of four draws of every step."""

        def step(denoise, x_t, t, noise, memory):
            drawn = jnp.stack([noise(draw) for draw in range(4)])
            rest = jax.lax.dynamic_update_slice(x_t[:, 1:], drawn[..., 0].T, (0, 4 * t))
            x_t = jnp.concatenate([x_t[:, :1], rest], axis=1)
            return Step(x_t, denoise(x_t, t).x_0, memory)

        end = sample(
            Sampler(steps, lambda x_T: (), step),
            unchanged,
            keys,
            (1 + 4 * steps,),
        )
        return np.asarray(end.x_0).T

    long, short = noises(20), noises(7)
    np.testing.assert_array_equal(long[0], short[0])
    for found in (long, short):
        assert np.unique(found).size == found.size


def test_noise_differs_by_step_index_stream_and_seed() -> None:
    def noise(seed: int, name: str, index: int, t: int) -> float:
        keys = random.per_index(random.stream(seed, name), jnp.array([index]))
        return float(random.normal(keys, t, (1,))[0, 0])

    base = (0, "sample", 3, 5)
    others = [(1, "sample", 3, 5), (0, "noise", 3, 5), (0, "sample", 4, 5), (0, "sample", 3, 6)]
    assert noise(*base) == noise(*base)
    assert len({noise(*base), *(noise(*other) for other in others)}) == 5


def test_a_walk_in_parts_is_the_walk(network) -> None:
    """Bit for bit, recorded estimates included, wherever it is cut."""
    keys = random.per_index(random.stream(0, "sample"), jnp.arange(3))
    record = (19, 11, 0)

    def part(state, timesteps):
        arguments = (ancestral(levels_of(SCHEDULE)), network, keys, state)
        return walk(*arguments, timesteps=timesteps, record=record)

    compiled = jax.jit(part)
    whole = end(
        compiled(begin(ancestral(levels_of(SCHEDULE)), keys, (8, 8, 1), 3), jnp.arange(20)[::-1])
    )
    for lengths in ((10, 10), (2, 16, 2)):
        state, first = begin(ancestral(levels_of(SCHEDULE)), keys, (8, 8, 1), 3), 19
        for length in lengths:
            state = compiled(state, first - jnp.arange(length))
            first -= length
        found = end(state)
        np.testing.assert_array_equal(found.x_0, whole.x_0)
        np.testing.assert_array_equal(found.progress, whole.progress)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginals_whatever_its_noise(eta: float) -> None:
    """Its noise has the variance eta^2 beta-tilde, which eps gives up, so that that of q stays."""
    chain, t = SCHEDULE, jnp.asarray(7)
    eps, x_0 = jnp.ones((1, 1)), jnp.zeros((1, 1))

    def known(x_t, t):
        return Prediction(x_0, eps, x_0, jnp.zeros(()))

    def after(noise: float) -> float:
        z = jnp.full((1, 1), noise)
        return float(ddim(levels_of(chain), eta=eta).step(known, x_0, t, lambda _: z, ()).x[0, 0])

    direction, deviation = after(0.0), after(1.0) - after(0.0)
    left = 1.0 - float(chain.alpha_bar_prev[7])
    assert deviation**2 == pytest.approx(eta**2 * float(chain.posterior_variance[7]), abs=1e-6)
    assert direction**2 + deviation**2 == pytest.approx(left, rel=1e-5)
