"""From x_T to x_0: the loop that all samplers share, written once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.random import normal
from diffusion.structs import Sampler


class Samples(NamedTuple):
    """What a walk ends in."""

    x_0: Float[Array, "b *x"]  # the samples
    progress: Float[Array, "k b *x"]  # estimates of x_0 at the recorded timesteps
    evaluations: Int[Array, " b"]  # of the denoiser, behind each sample


def record_slots(num_timesteps: int, record: tuple[int, ...]) -> np.ndarray:
    """i32[T]: where t's estimate is stored, or len(record) where it is dropped.

    Raises:
        ValueError: for a timestep outside [0, T), or one named twice.
    """
    if len(set(record)) != len(record) or any(not 0 <= t < num_timesteps for t in record):
        raise ValueError(
            f"record = {record} must name different timesteps in [0, {num_timesteps})."
        )
    slots = np.full(num_timesteps, len(record), np.int32)
    slots[list(record)] = np.arange(len(record), dtype=np.int32)
    return slots


class Walk(NamedTuple):
    """Where samples are on their way from x_T to x_0."""

    x_t: Float[Array, "b *x"]
    memory: Any  # the sampler's
    progress: Float[Array, "b k *x"]  # estimates of x_0 recorded so far, 0 where there is none yet
    evaluations: Int[Array, " b"]  # of the denoiser, so far


def start(sampler: Sampler, x_t: Float[Array, "b *x"], recorded: int) -> Walk:
    """At a given x_t, whether pure noise or not; `recorded` estimates to come."""
    progress = jnp.zeros((x_t.shape[0], recorded, *x_t.shape[1:]), x_t.dtype)
    return Walk(x_t, sampler.init(x_t), progress, jnp.zeros(x_t.shape[0], jnp.int32))


def begin(
    sampler: Sampler,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    recorded: int,
    deviation: float = 1.0,
) -> Walk:
    """At x_T, the same for every sampler and length of the chain; `recorded` estimates to come.

    Args:
        deviation: of x_T, that of a path's end.
    """
    return start(sampler, deviation * normal(keys, 0, shape), recorded)


def walk(
    sampler: Sampler,
    model: Any,
    keys: Key[Array, " b"],
    state: Walk,
    *,
    timesteps: Int[Array, " n"] | None = None,
    record: tuple[int, ...] = (),
) -> Walk:
    """Walks t from T - 1 to 0 in one `lax.scan` (DDPM Alg. 2), or a part of the way.

    Args:
        sampler: one of SAMPLERS on the chain to walk, respaced or not.
        model: what the sampler's steps ask, of the same chain, its parameters bound.
        keys: one key per sample; sample i depends on keys[i] alone, in any batch.
        state: of `begin` or `start`, or where the part before ended.
        timesteps: the part's, falling; None is all of them.
        record: timesteps of this chain whose estimates of x_0 are kept, the same in all parts.
            Memory grows with len(record), not with T.
    """
    slots = jnp.asarray(record_slots(sampler.num_steps, record))

    def body(state: Walk, t: jax.Array) -> tuple[Walk, None]:
        state, x_0 = _stepped(sampler, model, keys, state, t)
        if record:
            progress = state.progress.at[:, slots[t]].set(x_0, mode="drop")
            state = state._replace(progress=progress)
        return state, None

    falling = jnp.arange(sampler.num_steps)[::-1] if timesteps is None else timesteps
    return jax.lax.scan(body, state, falling)[0]


def walk_from(
    sampler: Sampler,
    model: Any,
    keys: Key[Array, " b"],
    state: Walk,
    t: Int[Array, ""],
) -> Walk:
    """As `walk`, from x_t at a timestep that need not be known when this is compiled."""

    def body(done: jax.Array, state: Walk) -> Walk:
        return _stepped(sampler, model, keys, state, t - done)[0]

    return jax.lax.fori_loop(0, t + 1, body, state)


def _stepped(
    sampler: Sampler, model: Any, keys: Key[Array, " b"], state: Walk, t: jax.Array
) -> tuple[Walk, jax.Array]:
    """After one step, and the estimate of x_0 before it."""

    def noise(draw: int | jax.Array) -> jax.Array:
        return normal(keys, 1 + t + draw * sampler.num_steps, state.x_t.shape[1:])

    step = sampler.step(model, state.x_t, t, noise, state.memory)
    evaluations = state.evaluations + step.evaluations
    return Walk(step.x, step.memory, state.progress, evaluations), step.x_0


def end(state: Walk) -> Samples:
    """What has been drawn when all timesteps are done."""
    return Samples(state.x_t, jnp.moveaxis(state.progress, 1, 0), state.evaluations)
