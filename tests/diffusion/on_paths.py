"""Every path of continuous time, and Gaussian data on it whose best denoiser is known."""

import jax
import numpy as np
import pytest

from diffusion.grids import log_snr
from diffusion.paths import PATHS
from diffusion.schedules import from_levels
from diffusion.structs import Levels, Parameterization, Path, Process
from diffusion.variances import VARIANCES
from tests.diffusion.gaussian import x_0_given_x_t as best

every_path = pytest.mark.parametrize("path", [make() for make in PATHS.values()], ids=list(PATHS))
# Of N(MEAN, DEVIATION^2): the network hands x on, and the exact E[x_0 | x_t] is how it is read.
EXACT = Parameterization(
    lambda now, x_0, eps, x_t: x_t,
    lambda now, output, x_t: best(now, output)[0],
    predicts_mean=False,
    needs_signal=False,
)


def network(params: None, x_t: jax.Array, told: jax.Array) -> jax.Array:
    return x_t


def process_of(path: Path, levels: Levels, parameterization: Parameterization = EXACT) -> Process:
    return Process(from_levels(levels), parameterization, VARIANCES["fixed_small"], path)


def inside(path: Path, count: int = 40) -> np.ndarray:
    """u from near the start to near the end, where some signal is left."""
    return log_snr(path, count + 2)[1:-1]
