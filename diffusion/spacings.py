"""Which timesteps a shorter chain visits, for `schedules.respace`.

Every entry of SPACINGS is (num_timesteps, num_steps, /, **options) -> i64[num_steps], strictly
increasing in [0, num_timesteps), and raises ValueError unless 1 <= num_steps <= num_timesteps.
Under all of them a chain of every timestep is the chain itself.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64

Timesteps = Int64[np.ndarray, " n"]
Spacing = Callable[[int, int], Timesteps]


def _check_steps(num_timesteps: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps = {num_steps} is not possible: choose 1 to {num_timesteps} (all timesteps)."
        )


def uniform(num_timesteps: int, num_steps: int, /) -> Timesteps:
    """From 0 to T - 1 at equal distances; both ends are visited (diffusers' `linspace`)."""
    _check_steps(num_timesteps, num_steps)
    if num_steps == 1:
        return np.array([num_timesteps - 1])
    return np.round(np.linspace(0, num_timesteps - 1, num_steps)).astype(np.int64)


def quadratic(num_timesteps: int, num_steps: int, /, share: float = 0.8) -> Timesteps:
    """Squares of equal distances, dense near 0 (DDIM section D.2 and its code).

    The last is at `share` of the chain, where DDIM's code ends and the walk then begins from pure
    noise. DDIM's code repeats small timesteps where squares round to the same one; here each is
    visited once, and those that follow are moved up.

    Raises:
        ValueError: also for a share that is not in (0, 1].
    """
    _check_steps(num_timesteps, num_steps)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share = {share} must be above 0 and at most 1, the whole chain.")
    if num_steps == num_timesteps:
        return np.arange(num_timesteps)
    end = max(share * num_timesteps, num_steps - 1)
    squares = (np.linspace(0.0, np.sqrt(end), num_steps) ** 2).astype(np.int64)
    order = np.arange(num_steps)
    return np.minimum(np.maximum.accumulate(squares - order) + order, num_timesteps - 1)


def leading(num_timesteps: int, num_steps: int, /, offset: int = 0) -> Timesteps:
    """offset, offset + T // n, ...: the walk does not begin at T - 1 (DDIM's code, diffusers).

    Raises:
        ValueError: also for an offset that leads past the chain.
    """
    _check_steps(num_timesteps, num_steps)
    keep = np.arange(num_steps) * (num_timesteps // num_steps) + offset
    if keep[0] < 0 or keep[-1] >= num_timesteps:
        raise ValueError(
            f"offset = {offset} leads to timestep {keep[-1]} of a chain of {num_timesteps}: choose "
            f"0 to {num_timesteps - 1 - keep[-1] + offset}."
        )
    return keep


def trailing(num_timesteps: int, num_steps: int, /) -> Timesteps:
    """T - 1, T - 1 - T / n, ...: from T - 1 on, and not down to 0 (Lin et al. 2024)."""
    _check_steps(num_timesteps, num_steps)
    ends = num_timesteps * (num_steps - np.arange(num_steps)) / num_steps
    return np.round(ends).astype(np.int64)[::-1] - 1


def array(num_timesteps: int, num_steps: int, /, timesteps: Sequence[int] = ()) -> Timesteps:
    """The given timesteps; where fewer steps are asked for, evenly chosen ones of them.

    Raises:
        ValueError: also for timesteps that do not rise, or that the chain does not have.
    """
    _check_steps(num_timesteps, num_steps)
    keep = np.asarray(timesteps)
    whole = keep.ndim == 1 and keep.size > 0 and np.issubdtype(keep.dtype, np.integer)
    if not whole or keep[0] < 0 or keep[-1] >= num_timesteps or (np.diff(keep) <= 0).any():
        raise ValueError(
            f"timesteps = {timesteps} must be rising whole numbers in [0, {num_timesteps})."
        )
    keep = keep.astype(np.int64)
    return keep if num_steps >= keep.size else keep[uniform(keep.size, num_steps)]


SPACINGS = MappingProxyType(
    {
        "uniform": uniform,
        "quadratic": quadratic,
        "leading": leading,
        "trailing": trailing,
        "array": array,
    }
)
