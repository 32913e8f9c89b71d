"""What every set of features has to be before a number is computed from it."""

import numpy as np


def rows(name: str, x: np.ndarray) -> np.ndarray:
    """`x` as an array, checked to be a set of rows.

    Args:
        name: what an error calls it.
        x: real[N, D] with N >= 1 and D >= 1, finite.

    Raises:
        ValueError: if the shape is another one, or a value is not finite.
    """
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must be [N, D] with N and D at least 1, not {list(x.shape)}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, but {np.sum(~np.isfinite(x))} values are not.")
    return x


def same_width(**sets: np.ndarray) -> list[np.ndarray]:
    """Several sets of rows by name, each checked by `rows`, all of one width.

    Raises:
        ValueError: as `rows` does, and if the widths differ.
    """
    checked = [rows(name, x) for name, x in sets.items()]
    if len({x.shape[1] for x in checked}) > 1:
        widths = ", ".join(f"{name} {x.shape[1]}" for name, x in zip(sets, checked, strict=True))
        raise ValueError(f"The sets must have the same number of features, not {widths}.")
    return checked


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError if `value` is below `least`."""
    if value < least:
        raise ValueError(f"{name} = {value} must be at least {least}.")
