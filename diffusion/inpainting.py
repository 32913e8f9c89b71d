"""Completion of images that are known in part: RePaint (Lugmayr et al. 2022, arXiv:2201.09865)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion.forward import q_sample, q_step
from diffusion.random import normal
from diffusion.structs import Sampler, Schedule

X = Float[Array, "b *x"]


def moves(num_steps: int, jump_length: int, resamplings: int) -> np.ndarray:
    """i32[n]: the number of noise levels below x before each move, which goes down, or up if < 0.

    From num_steps, at x_T, to 0, clean data, one level a move. Where the walk has come down to
    level 1, 1 + jump_length, ..., it goes up again by jump_length, so that every such stretch is
    walked `resamplings` times (RePaint section 4.2 and its appendix). An entry of -s goes from s to
    s + 1.

    Raises:
        ValueError: for numbers below 1.
    """
    if jump_length < 1 or resamplings < 1:
        raise ValueError(
            f"jump_length = {jump_length} and resamplings = {resamplings} must be at least 1."
        )
    left = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), resamplings - 1)
    level, found = num_steps, []
    while level:
        found.append(level)
        level -= 1
        if left.get(level):
            left[level] -= 1
            found += [-(level + up) for up in range(jump_length)]
            level += jump_length
    return np.array(found, np.int32)


def inpaint(
    sampler: Sampler,
    schedule: Schedule,
    model: Any,
    keys: Key[Array, " b"],
    known: X,
    mask: Float[Array, "b *x"],
    *,
    jump_length: int = 10,
    resamplings: int = 10,
    deviation: float = 1.0,
) -> X:
    """x_0 that is `known` where the mask is 1, exactly, and drawn to fit it elsewhere.

    After every step down the known part is replaced by a draw from q(x_{t-1} | x_0) (RePaint Eq. 8,
    Alg. 1), and the jumps of `moves` let the two parts agree.

    Args:
        sampler: one without memory, on `schedule`.
        schedule: the chain that is walked, respaced or not.
        model: what the sampler's steps ask, its parameters bound.
        keys: one per image; image i depends on keys[i] alone.
        known: f32[B, ...], clean data; what it holds where the mask is 0 does not matter.
        mask: f32[B, ...] of zeros and ones.
        jump_length, resamplings: see `moves`; resamplings = 1 never goes back.
        deviation: of x_T, that of a path's end.

    Raises:
        ValueError: for a sampler that remembers its steps, and as `moves`.
    """
    if jax.tree.leaves(jax.eval_shape(sampler.init, known)):
        raise ValueError(
            "inpainting goes back and forth, and this sampler remembers its last steps. Choose one "
            "that does not, such as ancestral."
        )
    walk = moves(sampler.num_steps, jump_length, resamplings)
    shape, count = known.shape[1:], len(walk)

    def body(x: jax.Array, move: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, level = move

        def noise(draw: int | jax.Array) -> jax.Array:
            return normal(keys, 1 + number + draw * count, shape)

        def down() -> jax.Array:
            drawn = sampler.step(model, x, level - 1, lambda draw: noise(1 + draw), ()).x
            noised = q_sample(schedule, known, jnp.maximum(level - 2, 0), noise(0))
            return jnp.where(mask > 0, jnp.where(level > 1, noised, known), drawn)

        def up() -> jax.Array:
            there = q_step(schedule, x, -level)
            return there.mean + jnp.exp(0.5 * there.log_variance) * noise(0)

        return jax.lax.cond(level > 0, down, up), None

    x_T = deviation * normal(keys, 0, shape)
    return jax.lax.scan(body, x_T, (jnp.arange(count), jnp.asarray(walk)))[0]
