"""What is made of given images: completions of a part, and the noise that DDIM makes them of."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from diffusion import samplers, thresholds
from diffusion.inpainting import inpaint
from diffusion.reverse import make_denoise
from diffusion.structs import Levels, Sampler
from diffusion.walk import start, walk
from experiments import devices
from experiments.experiment import Experiment
from experiments.methods.method import chain_of
from experiments.methods.sampler_model import model_for

Compiled = Callable[..., jax.Array]


def make_inpaint(
    experiment: Experiment,
    sampler: Callable[[Levels], Sampler],
    num_steps: int,
    *,
    jump_length: int,
    resamplings: int,
) -> Compiled:
    """(params, known [B, ...], mask [B, ...], labels i32[B], keys [B]) -> x_0 [B, ...] (RePaint).

    Under the guidance and the threshold of config.sample; compiled.

    Raises:
        ValueError: for a method without a chain, and as `inpaint` does.
    """
    chain = chain_of(experiment.method, "Inpainting")
    schedule, denoise, levels = chain.respaced(num_steps)
    with jax.ensure_compile_time_eval():
        walker = sampler(levels)
    model = model_for(walker, chain, denoise)

    def complete(params: Any, known: Any, mask: Any, labels: Any, keys: Any) -> jax.Array:
        return inpaint(
            walker,
            schedule,
            model(params, labels),
            keys,
            known,
            mask,
            jump_length=jump_length,
            resamplings=resamplings,
            deviation=chain.deviation,
        )

    compiled: Compiled = devices.jit(complete, precision=experiment.config.precision)
    return compiled


def make_ddim(experiment: Experiment, num_steps: int) -> tuple[Compiled, Compiled]:
    """(x_0 to x_T, x_T to x_0), both (params, x [B, ...], labels i32[B]) -> [B, ...], compiled.

    DDIM's deterministic steps on the chain of so many steps, without guidance or threshold; clean
    data is at timestep 0 whatever the spacing, and of a path at the first level that is walked.

    Raises:
        ValueError: for a method without a chain.
    """
    chain = chain_of(experiment.method, "DDIM")
    schedule, _, levels = chain.respaced(num_steps)
    walked = make_denoise(
        chain.apply, chain.process._replace(schedule=schedule), threshold=thresholds.none
    )
    known, whole, visited = walked, levels, None
    if chain.process.path is None:
        known = make_denoise(chain.apply, chain.process, threshold=thresholds.none)
        whole, visited = chain.levels, schedule.told
    with jax.ensure_compile_time_eval():
        sampler = samplers.ddim(levels)

    def encode(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        model = functools.partial(known, params, **chain.condition(labels))
        return samplers.ddim_encode(whole, model, x, visited)

    def decode(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        model = functools.partial(walked, params, **chain.condition(labels))
        keys = jax.random.split(jax.random.key(0), len(x))  # of noise that is not used
        return walk(sampler, model, keys, start(sampler, x, 0)).x_t

    compiled = [devices.jit(f, precision=devices.REPORTED) for f in (encode, decode)]
    return compiled[0], compiled[1]
