"""DDIM's steps backwards on timesteps that leave out 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import thresholds
from diffusion.forward import at
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import levels_of
from diffusion.reverse import make_denoise
from diffusion.samplers import ddim_encode
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import trailing
from diffusion.structs import Process
from diffusion.variances import VARIANCES
from tests.diffusion import mixture

T = 1000
BETA = BETAS["linear"](T)
LINEAR = from_betas(BETA)


def apply(params, x_t, t):
    return mixture.x_0_given_x_t(at(LINEAR, t, x_t), x_t)


def encoded(network, chain, x_0, timesteps=None):
    process = Process(chain, PARAMETERIZATIONS["x_0"], VARIANCES["fixed_small"])
    denoise = functools.partial(make_denoise(network, process, threshold=thresholds.none), None)
    return jax.jit(lambda x: ddim_encode(levels_of(chain), denoise, x, timesteps))(x_0)


@pytest.mark.parametrize("steps", [2, 10])
def test_clean_data_is_at_timestep_0_whatever_the_spacing(steps: int) -> None:
    """Visited or not: the noise of timestep 0 is next to none."""
    x_0 = mixture.draw(jax.random.key(5), (64, 1))
    keep = trailing(T, steps)
    found = encoded(apply, LINEAR, x_0, jnp.asarray(keep))
    with_0 = encoded(apply, respace(BETA, [0, *keep]), x_0)
    np.testing.assert_allclose(found, with_0, atol=2e-3)
    with pytest.raises(ValueError, match=f"begins at the network's timestep {keep[0]}, .* at 0"):
        encoded(apply, respace(BETA, keep), x_0)


def test_the_network_is_told_0_and_then_where_it_is() -> None:
    told = []

    def network(params, x_t, t):
        jax.debug.callback(lambda t: told.append(int(t)), t[0], ordered=True)
        return apply(params, x_t, t)

    encoded(network, LINEAR, jnp.zeros((1, 1)), jnp.asarray(trailing(T, 4))).block_until_ready()
    jax.effects_barrier()
    assert told == [0, 249, 499, 749]
