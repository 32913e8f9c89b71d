"""Model that a sampler asks: the reverse process on its chain, or the probability flow."""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Int

from diffusion.probability_flow import bind, make_flow
from diffusion.reverse import Denoise
from diffusion.structs import Sampler
from experiments.methods.method import Chain


def model_for(
    sampler: Sampler, chain: Chain, denoise: Denoise
) -> Callable[[Any, Int[Array, "b ..."]], Any]:
    """(params, labels) -> what the steps of a sampler ask, under the guidance of sampling.

    Args:
        sampler: on a chain of `chain.respaced`.
        chain: the model's.
        denoise: the reverse process on the chain of the sampler.
    """
    flow = make_flow(chain.guided, chain.process) if sampler.continuous else None

    def model(params: Any, labels: Int[Array, "b ..."]) -> Any:
        inputs = chain.condition(labels)
        return bind(flow, params, inputs) if flow else functools.partial(denoise, params, **inputs)

    return model
