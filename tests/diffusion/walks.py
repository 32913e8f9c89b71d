"""A whole walk at once."""

from typing import Any

from diffusion.samplers import Sampler, Samples, begin, end, walk
from diffusion.structs import Schedule


def sample(
    sampler: Sampler,
    schedule: Schedule,
    denoise: Any,
    keys: Any,
    shape: tuple[int, ...],
    record: tuple[int, ...] = (),
) -> Samples:
    """Samples of `shape`, one a key."""
    state = begin(sampler, keys, shape, len(record))
    return end(walk(sampler, schedule, denoise, keys, state, record=record))
