"""Sampling: what one step does is a `Sampler`; the loop over T is written once."""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.random import normal
from diffusion.structs import BoundDenoise, Noise, Prediction, Sampler, Schedule

X = Float[Array, "b *x"]


def ancestral() -> Sampler:
    """x_{t-1} = mean + exp(log_variance / 2) z, with z = 0 in the last step (DDPM Alg. 2)."""

    def step(
        schedule: Schedule, denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any
    ) -> tuple[X, Prediction, Any]:
        prediction = denoise(x_t, t)
        deviation = jnp.where(t > 0, jnp.exp(0.5 * prediction.log_variance), 0.0)
        return prediction.mean + deviation * noise(0), prediction, memory

    return Sampler(init=lambda x_T: (), step=step, uses_variance=True)


class Samples(NamedTuple):
    """What a walk ends in."""

    x_0: Float[Array, "b *x"]  # the samples
    progress: Float[Array, "k b *x"]  # estimates of x_0 at the recorded timesteps


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

    x_t: X
    memory: Any  # the sampler's
    progress: Float[Array, "b k *x"]  # estimates of x_0 recorded so far, 0 where there is none yet


def begin(sampler: Sampler, keys: Key[Array, " b"], shape: tuple[int, ...], recorded: int) -> Walk:
    """At x_T, the same for every sampler and length of the chain; `recorded` estimates to come."""
    x_T = normal(keys, 0, shape)
    progress = jnp.zeros((x_T.shape[0], recorded, *shape), x_T.dtype)
    return Walk(x_T, sampler.init(x_T), progress)


def walk(
    sampler: Sampler,
    schedule: Schedule,
    denoise: BoundDenoise,
    keys: Key[Array, " b"],
    state: Walk,
    *,
    timesteps: Int[Array, " n"] | None = None,
    record: tuple[int, ...] = (),
) -> Walk:
    """Walks t from T - 1 to 0 in one `lax.scan` (DDPM Alg. 2), or a part of the way.

    Args:
        sampler: one of SAMPLERS, its options bound.
        schedule: the chain to walk, respaced or not, which `denoise` is of.
        keys: one key per sample; sample i depends on keys[i] alone, in any batch.
        state: of `begin`, or where the part before ended.
        timesteps: the part's, falling; None is all of them.
        record: timesteps of this chain whose estimates of x_0 are kept, the same in all parts.
            Memory grows with len(record), not with T.
    """
    num_timesteps, shape = schedule.num_timesteps, state.x_t.shape[1:]
    slots = jnp.asarray(record_slots(num_timesteps, record))

    def body(state: Walk, t: jax.Array) -> tuple[Walk, None]:
        def noise(draw: int) -> jax.Array:
            return normal(keys, 1 + t + draw * num_timesteps, shape)

        x_t, prediction, memory = sampler.step(schedule, denoise, state.x_t, t, noise, state.memory)
        progress = state.progress
        if record:
            progress = progress.at[:, slots[t]].set(prediction.x_0, mode="drop")
        return Walk(x_t, memory, progress), None

    falling = jnp.arange(num_timesteps)[::-1] if timesteps is None else timesteps
    return jax.lax.scan(body, state, falling)[0]


def end(state: Walk) -> Samples:
    """What has been drawn when all timesteps are done."""
    return Samples(state.x_t, jnp.moveaxis(state.progress, 1, 0))


SAMPLERS = MappingProxyType({"ancestral": ancestral})
