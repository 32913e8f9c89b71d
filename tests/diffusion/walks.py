"""A whole walk at once."""

from typing import Any

from diffusion.structs import Sampler
from diffusion.walk import Samples, begin, end, walk


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
