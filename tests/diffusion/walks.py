"""What a sampler asks, and a whole walk at once."""

import functools
from typing import Any

from diffusion import thresholds
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.probability_flow import bind, make_flow
from diffusion.reverse import make_denoise
from diffusion.structs import Process, Sampler, Schedule, Variance
from diffusion.variances import VARIANCES
from diffusion.walk import Samples, begin, end, walk

ON_CHAINS = {name: each for name, each in PARAMETERIZATIONS.items() if not each.needs_path}


def model_of(
    sampler: Sampler,
    apply: Any,
    params: Any,
    whole: Schedule,
    chain: Schedule,
    variance: Variance = VARIANCES["fixed_small"],
) -> Any:
    """What a sampler on `chain` asks of a network on the whole chain that predicts x_0."""
    process = Process(whole, PARAMETERIZATIONS["x_0"], variance)
    if sampler.continuous:
        return bind(make_flow(apply, process), params, {})
    process = process._replace(schedule=chain)
    return functools.partial(make_denoise(apply, process, threshold=thresholds.none), params)


def sample(
    sampler: Sampler,
    model: Any,
    keys: Any,
    shape: tuple[int, ...],
    record: tuple[int, ...] = (),
) -> Samples:
    """Samples of `shape`, one a key."""
    state = begin(sampler, keys, shape, len(record))
    return end(walk(sampler, model, keys, state, record=record))
