"""The mixture of the benchmarks as the data of tests, with the best network of a chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.mixture import DATA as DATA
from benchmarks.mixture import Mixture as Mixture
from benchmarks.mixture import cumulative as cumulative
from benchmarks.mixture import draw as draw
from benchmarks.mixture import log_density as log_density
from benchmarks.mixture import x_0_given_x_t
from diffusion import paths
from diffusion.structs import Point, Schedule


def levels(schedule: Schedule) -> Callable[[jax.Array, jax.Array], Point]:
    """(t [B], like) -> the chain's noise levels at timesteps or between, to go with `like`."""
    path = paths.through(schedule)

    def at(t: jax.Array, like: jax.Array) -> Point:
        now = paths.at(path, t.astype(jnp.float32))
        return jax.tree.map(lambda value: value.reshape(-1, *[1] * (like.ndim - 1)), now)

    return at


def best_network(schedule: Schedule) -> Any:
    """(data, x_t, t [B]) -> E[x_0 | x_t], to be read as x_0, on a chain of its own times."""
    at = levels(schedule)
    return lambda data, x_t, t: x_0_given_x_t(at(t, x_t), x_t, data)
