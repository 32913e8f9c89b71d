import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.likelihood import prior_term, to_bits_per_dim
from diffusion.paths import levels_of
from diffusion.schedules import BETAS, from_betas, linear
from experiments.build import build
from experiments.command_line import load_config
from experiments.configs import digits
from experiments.lookup import lookup
from experiments.methods.end_of_chain import ENOUGH_NOISE, largest_prior_term, noisier


def test_a_chain_cut_short_shows_in_its_description() -> None:
    """The stated L_T is the bound's prior term where every pixel is at 1."""
    for length, ends_in_noise in ((1000, True), (100, False)):
        schedule = from_betas(linear(length))
        prior = largest_prior_term(levels_of(schedule))
        term = to_bits_per_dim(prior_term(schedule, jnp.ones((1, 4, 4, 1))))
        assert prior == pytest.approx(float(term[0]), rel=1e-3)
        assert (prior < 1e-4) == ends_in_noise
    config = digits.get_config()
    assert not any("WARNING" in line for line in build(config).method.description)
    config.schedule.num_timesteps = 100
    lines = build(config).method.description
    assert "does not end in noise" in lines[-1] and "T = 100" in lines[1]


SHAPES = {
    **dict.fromkeys(("linear", "quadratic", "sigmoid", "warmup10", "warmup50"), True),
    **{"constant": "beta=0.02", "jsd": "", "cosine": "beta_max=0.1"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_advised_for_a_chain_that_ends_early_ends_in_noise(shape: str) -> None:
    """As it is printed, for any T: betas scaled by 1000 / T only where they stay below 1."""
    options = "beta_start=1e-4, beta_end=0.02" if SHAPES[shape] is True else SHAPES[shape]
    for length in (1, 2, 8, 10, 19, 20, 21, 40, 100, 333):
        first = f"--config.schedule={shape}(num_timesteps={length}, {options})"
        config = load_config(["--config=digits", first])
        betas = lookup(BETAS, config.schedule, "schedule")()
        if largest_prior_term(levels_of(from_betas(betas))) <= ENOUGH_NOISE:
            continue
        advised = noisier(config.schedule.to_dict())
        if shape == "linear":
            assert len(advised) == 1 + (length > 20), (length, advised)
        for choice in map(shlex.split, advised):
            better = load_config(["--config=digits", first, *choice]).schedule
            assert len(lookup(BETAS, better, "schedule")()) == length
            found = levels_of(from_betas(lookup(BETAS, better, "schedule")()))
            assert largest_prior_term(found) <= ENOUGH_NOISE, (length, choice)


def test_a_short_chain_needs_fewer_preview_steps_only_where_there_are_previews() -> None:
    config = load_config(["--config=digits", "--config.schedule=cosine(num_timesteps=2)"])
    assert config.train.preview_num_steps == 50
    with pytest.raises(ValueError, match=r"config\.train\.preview_num_steps: num_steps = 50"):
        build(config)
    config.train.preview_every = 0
    assert build(config).method.num_steps == 2
    config.train.validate_every, config.train.validate_with = 100, "samples"
    with pytest.raises(ValueError, match=r"config\.train\.preview_num_steps"):
        build(config)


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
