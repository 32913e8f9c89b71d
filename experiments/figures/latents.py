"""From a noised image back to x_0: what completions, interpolations and decoding are made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import random
from diffusion.forward import q_sample
from diffusion.samplers import ancestral
from diffusion.structs import Schedule
from diffusion.walk import start, walk_from
from experiments import devices
from experiments.editing import make_inpaint
from experiments.figures.figure import Context
from experiments.methods.method import chain_of


class Latents(NamedTuple):
    """A chain, as it is sampled, with its compiled ways up and down.

    schedule: the chain that is walked, respaced where sampling is.
    noised: (x_0 [B, ...], t, eps [B, ...]) -> x_t.
    decode: (x_t [B, ...], t, labels [B], indices [B]) -> x_0 by `ancestral` from x_t at t, whose
        noise is a function of the seed and the indices alone.
    complete: (known [B, ...], mask [B, ...], labels [B], indices [B]) -> x_0 (RePaint).
    """

    schedule: Schedule
    noised: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    complete: Callable[..., jax.Array]

    def time_of(self, share: float) -> int:
        """The timestep of this chain at a share of its way, 1 and more being the last, T - 1."""
        steps = self.schedule.num_timesteps
        return min(max(round(share * steps), 1), steps) - 1

    def middle(self, height: int) -> float:
        """The share of the way at which an image is half forgotten: where the SNR is 20 / height.

        This is t = 500 of 1000 for the paper's 256x256 images and schedule, and less for smaller
        images, whose coarse features are of fewer pixels and drown in less noise.
        """
        snr = np.asarray(self.schedule.alpha_bar) / np.asarray(self.schedule.noise_variance)
        return float((snr > 20.0 / height).mean())


def make_latents(context: Context, purpose: str) -> Latents:
    """Of the model's chain; raises ValueError for a model that has none."""
    experiment = context.experiment
    method, config = experiment.method, experiment.config
    chain = chain_of(method, f"The figure {purpose}")
    schedule, denoise, levels = chain.respaced(config.sample.num_steps)
    with jax.ensure_compile_time_eval():
        sampler = ancestral(levels)
    jit = functools.partial(devices.jit, precision=config.precision)

    def model(params: Any, labels: jax.Array) -> Any:
        return functools.partial(denoise, params, **chain.condition(labels))

    def keys_of(indices: jax.Array) -> jax.Array:
        return random.per_index(random.stream(config.seed, "figures"), indices)

    def down(params: Any, x_t: jax.Array, t: Any, labels: jax.Array, indices: jax.Array) -> Any:
        state = start(sampler, x_t, 0)
        return walk_from(sampler, model(params, labels), keys_of(indices), state, t).x_t

    def times(t: Any) -> jax.Array:
        return jnp.asarray(t, jnp.int32)

    fill = make_inpaint(
        *(experiment, lambda levels: sampler, config.sample.num_steps),
        jump_length=min(10, sampler.num_steps),
        resamplings=config.figures.resamplings,
    )

    def complete(known: Any, mask: Any, labels: Any, indices: jax.Array) -> jax.Array:
        return fill(context.params, known, mask, labels, keys_of(indices))

    first = jit(down)
    noised = jit(lambda x_0, t, eps: q_sample(schedule, x_0, t, eps))
    return Latents(
        schedule,
        lambda x_0, t, eps: noised(x_0, times(t), eps),
        lambda x_t, t, *rest: first(context.params, x_t, times(t), *rest),
        complete,
    )


def noise(context: Context, name: str, count: int) -> jax.Array:
    """f32[count, ...] standard normal draws of the seed, a stream for each name."""
    keys = random.per_index(random.stream(context.seed, f"figures {name}"), jnp.arange(count))
    return random.normal(keys, 0, context.experiment.encoder.shape)
