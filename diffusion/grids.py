"""Times u at which a walk along a path stops, for `paths.grid`.

Every entry of GRIDS is (path, num_steps, /, **options) -> f64[num_steps], rising in
[path.start, path.end], and raises ValueError unless num_steps >= 1. The walk begins at the last
and goes from the first to clean data.
"""

from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from diffusion.paths import places, points
from diffusion.structs import Path

Times = Float64[np.ndarray, " n"]
LITTLE = 1e-3  # of signal / noise, where `log_snr` begins on a path that ends in pure noise


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not possible: choose 1 or more.")


def uniform(path: Path, num_steps: int, /) -> Times:
    """From start to end at equal distances; a single step is from the end."""
    _check_steps(num_steps)
    return np.linspace(path.end, path.start, num_steps)[::-1]


def trailing(path: Path, num_steps: int, /) -> Times:
    """end / n, 2 end / n, ... end: equal steps all the way to clean data at u = 0.

    Where the first would lie below the start, as `uniform`.
    """
    _check_steps(num_steps)
    if path.end / num_steps < path.start:
        return uniform(path, num_steps)
    return path.end * (1.0 + np.arange(num_steps)) / num_steps


def _noise_ratios(path: Path) -> tuple[float, float]:
    """noise / signal at the path's start and where a walk begins: LITTLE signal is left there."""
    ends = points(path, [path.start, path.end])
    with np.errstate(divide="ignore"):
        start, end = ends.noise / ends.signal
    return float(start), min(float(end), 1.0 / LITTLE)


def karras(path: Path, num_steps: int, /, rho: float = 7.0) -> Times:
    """noise / signal at equal distances of its rho-th root (EDM Eq. 5), from end to start.

    A path that ends in pure noise is left at a signal of LITTLE times the noise.

    Raises:
        ValueError: also unless rho > 0.
    """
    _check_steps(num_steps)
    if not rho > 0.0:
        raise ValueError(f"rho = {rho} must be above 0.")
    start, end = _noise_ratios(path)
    roots = np.linspace(end ** (1 / rho), start ** (1 / rho), num_steps)
    return places(path, -rho * np.log(roots[::-1]))


def log_snr(path: Path, num_steps: int, /) -> Times:
    """log(signal / noise) at equal distances, from end to start (DPM-Solver section 3.4).

    A path that ends in pure noise is left at a signal of LITTLE times the noise, since there the
    logarithm is infinite.
    """
    _check_steps(num_steps)
    start, end = _noise_ratios(path)
    return places(path, np.linspace(-np.log(end), -np.log(start), num_steps)[::-1])


GRIDS = MappingProxyType(
    {"uniform": uniform, "trailing": trailing, "karras": karras, "log_snr": log_snr}
)
