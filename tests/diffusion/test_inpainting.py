from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.inpainting import inpaint, moves
from diffusion.paths import grid, through
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, from_betas, respace
from diffusion.spacings import uniform
from diffusion.structs import Sampler, Step
from tests.diffusion import mixture
from tests.diffusion.walks import model_of

BETA = BETAS["linear"](1000)
CHAIN = respace(BETA, uniform(1000, 100))
LINEAR = from_betas(BETA)
WALKED = grid(through(LINEAR), uniform(1000, 100).astype(float))  # its levels, for all samplers
LEVELS = mixture.levels(LINEAR)
COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]], np.float32)


def best_network(params, x_t, t):
    """E[x_0 | x_t] of data that is N(0, COVARIANCE)."""
    now = LEVELS(t, x_t)
    eigen, rotation = np.linalg.eigh(COVARIANCE)
    noise = now.noise**2
    gain = now.signal * eigen / (now.signal**2 * eigen + noise)
    return gain * (x_t @ rotation) @ rotation.T


def test_the_moves_are_repaints() -> None:
    """Ten levels, jumps of three, twice each: 1 and 4 and 7 are left twice."""
    assert moves(4, 2, 1).tolist() == [4, 3, 2, 1]
    assert moves(4, 2, 2).tolist() == [4, 3, 2, -1, -2, 3, 2, 1]
    for jump_length, resamplings in ((1, 3), (3, 2), (10, 10)):
        found = moves(250, jump_length, resamplings)
        after = np.where(found > 0, found - 1, 1 - found)
        np.testing.assert_array_equal(abs(found[1:]), after[:-1])  # one level a move
        assert found[0] == 250 and after[-1] == 0
        jumps = len(range(1, 250 - jump_length + 1, jump_length))
        assert (found < 0).sum() == jumps * jump_length * (resamplings - 1)
        assert (found == 1).sum() == 1  # never back from clean data
    with pytest.raises(ValueError, match="at least 1"):
        moves(10, 0, 1)


def forgets(name: str) -> bool:
    """Whether a sampler hands on nothing but x."""
    init = SAMPLERS[name](WALKED).init
    return not jax.tree.leaves(jax.eval_shape(init, jnp.zeros((2, 2))))


def complete(x: float, n: int, resamplings: int, name: str = "ancestral") -> np.ndarray:
    """[n, 2] of correlated Gaussian data whose first value is known."""
    sampler = SAMPLERS[name](WALKED)
    model = model_of(sampler, best_network, None, LINEAR, CHAIN)
    known = jnp.broadcast_to(jnp.array([x, 99.0]), (n, 2))
    mask = jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, 2))
    keys = jax.random.split(jax.random.key(0), n)
    run = jax.jit(
        lambda keys: inpaint(
            sampler,
            CHAIN,
            model,
            keys,
            known,
            mask,
            jump_length=5,
            resamplings=resamplings,
        )
    )
    return np.asarray(run(keys))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if forgets(name)])
def test_known_values_come_back_exactly(name: str) -> None:
    found = complete(0.3, 16, 2, name)
    assert (found[:, 0] == np.float32(0.3)).all() and np.isfinite(found).all()
    assert abs(found[:, 1]).max() < 3.0  # what stood under the mask left no trace


def test_resampling_draws_the_unknown_as_it_depends_on_the_known() -> None:
    """Given the first, the second is N(rho x, (1 - rho^2) var); without resampling it is not."""
    rho, x, n = 0.8, 0.6, 2000
    plain, resampled = complete(x, n, 1)[:, 1], complete(x, n, 10)[:, 1]
    truth, spread = rho * x, np.sqrt((1 - rho**2) * 0.25)
    assert resampled.mean() == pytest.approx(truth, abs=0.05)
    assert resampled.std() == pytest.approx(spread, rel=0.1)
    assert abs(plain.mean() - truth) > 2 * abs(resampled.mean() - truth)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not forgets(name)])
def test_a_sampler_with_a_memory_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="remembers its last steps"):
        complete(0.3, 2, 2, name)
    assert not forgets(name) and forgets("ancestral")


class Visit(NamedTuple):
    """What a sampler was given in one step: f32[n, 2] each, but for t."""

    t: int
    x_t: np.ndarray
    first: np.ndarray  # its first draw of noise
    second: np.ndarray


SHORT = from_betas(BETAS["linear"](6, beta_start=0.1, beta_end=0.5))


def visits(known: float, n: int) -> tuple[list[Visit], np.ndarray]:
    """The steps down of a resampled walk whose sampler draws 0, and the moves that it made.

    The first of two values is known.
    """
    found: list[Visit] = []

    def step(model, x_t, t, noise, memory):
        told = (t, x_t, noise(0), noise(1))
        jax.debug.callback(lambda *args: found.append(Visit(*map(np.asarray, args))), *told)
        return Step(jnp.zeros_like(x_t), x_t, memory)

    steps, mask = SHORT.num_timesteps, jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, 2))
    arguments = (jax.random.split(jax.random.key(2), n), jnp.full((n, 2), known), mask)
    options = dict(jump_length=1, resamplings=2)
    inpaint(Sampler(steps, lambda x_T: (), step), SHORT, None, *arguments, **options)
    jax.effects_barrier()
    return found, moves(steps, *options.values())


def test_the_known_part_always_has_the_noise_of_its_level() -> None:
    """On the way down and after every jump: q(x_t | x_0) (RePaint Eq. 8)."""
    known, n = 0.7, 20_000
    found, walk = visits(known, n)
    assert [visit.t for visit in found] == [level - 1 for level in walk if level > 0]
    for visit in found[1:]:  # the first is x_T
        x_t, noise = visit.x_t[:, 0], float(SHORT.noise_variance[visit.t])
        mean = float(SHORT.signal[visit.t]) * known
        assert x_t.mean() == pytest.approx(mean, abs=5 * np.sqrt(noise / n))
        assert x_t.var() == pytest.approx(noise, rel=5 * np.sqrt(2 / n))


def test_no_noise_is_used_twice() -> None:
    """Not of the start, of steps, of what is known, of jumps: each is told by what it led to.

    With 0 known and 0 drawn, x_t is the noise of the known value after a move down, and that of the
    unknown one after a jump.
    """
    n = 2000
    found, walk = visits(0.0, n)
    after_jump = walk[np.flatnonzero(walk > 0)[1:] - 1] < 0
    draws = [*found[0].x_t.T]
    for visit, jumped in zip(found[1:], after_jump, strict=True):
        draws.append(visit.x_t[:, 1 if jumped else 0])
    for visit in found:
        draws += [*visit.first.T, *visit.second.T]
    alike = np.corrcoef(draws) - np.eye(len(draws))
    assert after_jump.any() and np.abs(alike).max() < 6 / np.sqrt(n)
