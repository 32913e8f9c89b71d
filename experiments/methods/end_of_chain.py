"""The noise at the end of a chain: the largest prior term, and what to choose where it is large."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion import schedules
from diffusion.paths import levels_of
from diffusion.structs import Levels
from experiments.lookup import lookup, written

ENOUGH_NOISE = 1e-3  # bits/dim of L_T, at most, of a chain that ends in noise


def largest_prior_term(levels: Levels, deviation: float = 1.0) -> float:
    """L_T (DDPM Eq. 5) in bits per dimension where |x_0| = 1, which no image in [-1, 1] exceeds.

    KL(q(x_T | x_0) || N(0, deviation^2 I)), of a chain -log(1 - alpha_bar_T) / 2 nats. A value far
    from 0 means that sampling starts from a distribution that training never showed the network:
    usually betas meant for another T.
    """
    signal, noise = (float(x[-1]) / deviation for x in (levels.signal, levels.noise))
    nats = 0.5 * (noise**2 + signal**2 - 1.0) - np.log(noise)
    return float(nats / np.log(2.0))


def noisier(spec: Mapping[str, Any]) -> list[str]:
    """Choices for the command line under which a chain of as many timesteps ends in noise.

    Betas are usually meant for T = 1000, and those of another T 1000 / T as large.

    Args:
        spec: config.schedule of the chain that does not.
    """
    num_timesteps = len(lookup(schedules.BETAS, spec, "schedule")())
    choices: list[Mapping[str, Any]] = [{"name": "cosine", "num_timesteps": num_timesteps}]
    scaled = {
        name: float(f"{value * 1000 / num_timesteps:.6g}")
        for name, value in spec.items()
        if name in ("beta_start", "beta_end", "beta")
    }
    if scaled and max(scaled.values()) < 1:
        betas = lookup(schedules.BETAS, {**spec, **scaled}, "schedule")()
        if largest_prior_term(levels_of(schedules.from_betas(betas))) <= ENOUGH_NOISE:
            choices.insert(0, {**spec, **scaled})
    return [
        written("schedule", each["name"], {k: v for k, v in each.items() if k != "name"})
        for each in choices
    ]
