import jax.numpy as jnp
import pytest

from diffusion.schedules import from_betas, linear
from experiments.build import build
from experiments.configs import digits
from experiments.methods.diffusion import largest_prior_term


def test_a_chain_cut_short_shows_in_its_description() -> None:
    """With alpha_bar of the signal left, L_T at |x_0| = 1 is -log(1 - alpha_bar) / 2 nats."""
    for length, ends_in_noise in ((1000, True), (100, False)):
        schedule = from_betas(linear(length))
        prior = largest_prior_term(schedule)
        left = float(schedule.alpha_bar[-1])
        assert prior == pytest.approx(-0.5 * float(jnp.log2(1 - left)), rel=2e-3)
        assert (prior < 1e-4) == ends_in_noise
    config = digits.get_config()
    assert not any("WARNING" in line for line in build(config).method.description)
    config.schedule.num_timesteps = 100
    lines = build(config).method.description
    assert "does not end in noise" in lines[-1] and "T = 100" in lines[1]
