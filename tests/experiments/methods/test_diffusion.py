import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.likelihood import prior_term, to_bits_per_dim
from diffusion.schedules import from_betas, linear
from experiments.build import build
from experiments.configs import digits
from experiments.methods.diffusion import largest_prior_term


def test_a_chain_cut_short_shows_in_its_description() -> None:
    """The stated L_T is the bound's prior term where every pixel is at 1."""
    for length, ends_in_noise in ((1000, True), (100, False)):
        schedule = from_betas(linear(length))
        prior = largest_prior_term(schedule)
        term = to_bits_per_dim(prior_term(schedule, jnp.ones((1, 4, 4, 1))))
        assert prior == pytest.approx(float(term[0]), rel=1e-3)
        assert (prior < 1e-4) == ends_in_noise
    config = digits.get_config()
    assert not any("WARNING" in line for line in build(config).method.description)
    config.schedule.num_timesteps = 100
    lines = build(config).method.description
    assert "does not end in noise" in lines[-1] and "T = 100" in lines[1]


def test_a_weight_multiplies_the_loss_and_not_what_is_remembered(tiny) -> None:
    """Importance weights are of the mean; timesteps are drawn by the losses themselves."""
    method = build(tiny()).method
    params = jax.jit(method.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    x_0 = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    examples = method.draw(method.memory(), x_0, jnp.zeros(4, jnp.int32), lambda name: keys)
    weight = jnp.array([1.0, 3.0, 0.5, 0.0])
    losses, details = method.losses(params, examples._replace(weight=weight), keys[0])
    np.testing.assert_allclose(losses, weight * details, rtol=1e-6)
    assert (details > 0).all()
    sums, counts = method.summary(examples, details)["loss_q"]
    assert float(sums.sum()) == pytest.approx(float(details.sum()), rel=1e-5)
    assert counts.tolist() == np.bincount(examples.t * 4 // 8, minlength=4).tolist()
