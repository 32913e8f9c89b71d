"""Sampling: what one step does is a `Sampler`; the loop over T is written once."""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

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
    """What `sample` returns."""

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


def sample(
    sampler: Sampler,
    schedule: Schedule,
    denoise: BoundDenoise,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    *,
    record: tuple[int, ...] = (),
) -> Samples:
    """Draws one sample per key by walking t from T - 1 to 0 in one `lax.scan` (DDPM Alg. 2).

    Args:
        sampler: one of SAMPLERS, its options bound.
        schedule: the chain to walk, respaced or not.
        denoise: (x_t, t) -> Prediction on that chain, parameters already bound.
        keys: one key per sample; sample i depends on keys[i] alone, in any batch, and starts from
            the same x_T whatever the sampler and the length of the chain.
        shape: shape of one sample, (H, W, C) for images.
        record: timesteps of this chain whose estimates of x_0 are kept. Memory grows with
            len(record), not with T.

    Returns:
        The samples, f32[B, *shape], and progress f32[len(record), B, *shape].
    """
    num_timesteps = schedule.num_timesteps
    slots = jnp.asarray(record_slots(num_timesteps, record))
    x_T = normal(keys, 0, shape)  # the same for every sampler and number of steps
    progress = jnp.zeros((len(record), *x_T.shape), x_T.dtype)

    def body(carry: tuple[Any, Any, Any], t: jax.Array) -> tuple[tuple[Any, Any, Any], None]:
        x_t, memory, progress = carry

        def noise(draw: int) -> jax.Array:
            return normal(keys, 1 + t + draw * num_timesteps, shape)

        x_t, prediction, memory = sampler.step(schedule, denoise, x_t, t, noise, memory)
        if record:
            progress = progress.at[slots[t]].set(prediction.x_0, mode="drop")
        return (x_t, memory, progress), None

    carry = (x_T, sampler.init(x_T), progress)
    (x_0, _, progress), _ = jax.lax.scan(body, carry, jnp.arange(num_timesteps)[::-1])
    return Samples(x_0, progress)


SAMPLERS = MappingProxyType({"ancestral": ancestral})
