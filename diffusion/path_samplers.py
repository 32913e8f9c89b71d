"""Samplers in continuous time: Euler's and Heun's method in u, and Heun's with churn (EDM Alg. 2).

The probability flow of any path is dx/du = signal'(u) x_0 + noise'(u) eps. The last step goes from
the first level to the estimate of x_0 there, as those of all samplers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.paths import check_signal, places, points, row
from diffusion.probability_flow import BoundFlow
from diffusion.structs import BoundDenoise, Levels, Noise, Path, Prediction, Sampler, Step

X = Float[Array, "b *x"]
MOST_CHURN = math.sqrt(2.0) - 1.0  # of a step's noise, beyond which EDM adds none


def _path_of(levels: Levels, sampler: str) -> Path:
    """The path, which levels of a chain do not have.

    Raises:
        ValueError: naming the sampler and what to choose instead.
    """
    if levels.path is None:
        raise ValueError(
            f"the sampler {sampler!r} takes steps in continuous time, which a chain "
            "(config.schedule) does not have. Choose ddim (Euler's method in noise / signal) or "
            "heun, or a path (config.path)."
        )
    return levels.path


def _in_u(levels: Levels, corrects: bool) -> Sampler:
    """Euler's method in u, whose guess the trapezoidal rule may correct."""
    assert levels.d_signal is not None and levels.d_noise is not None
    table = np.stack([levels.d_signal[1:], levels.d_noise[1:], np.diff(levels.time)], axis=1)

    def velocity(prediction: Prediction, t: jax.Array, like: X) -> X:
        d_signal, d_noise, _ = row(table, t, like)
        return d_signal * prediction.x_0 + d_noise * prediction.eps

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        prediction = denoise(x_t, t)
        length, first = row(table, t, x_t)[2], velocity(prediction, t, x_t)
        guess = x_t - length * first

        def corrected() -> X:
            return x_t - 0.5 * length * (first + velocity(denoise(guess, t - 1), t - 1, x_t))

        if corrects:
            guess = jax.lax.cond(t > 0, corrected, lambda: guess)
        evaluations = jnp.where(t > 0, 2, 1) if corrects else 1
        return Step(jnp.where(t > 0, guess, prediction.x_0), prediction.x_0, memory, evaluations)

    return Sampler(
        levels.num_steps, lambda x_T: (), step, needs_path=True, order=2 if corrects else 1
    )


def euler(levels: Levels, /) -> Sampler:
    """x - (u - u') (signal' x_0 + noise' eps): Euler's method in u (flow matching's sampler).

    On straight paths it is `ddim`, whatever the network.

    Raises:
        ValueError: for levels of a chain.
    """
    _path_of(levels, "euler")
    return _in_u(levels, corrects=False)


def heun_u(levels: Levels, /) -> Sampler:
    """Heun's method in u: the trapezoidal rule on a step of `euler`; 2 T - 1 evaluations.

    `heun` is the same method in noise / signal.

    Raises:
        ValueError: for levels of a chain.
    """
    _path_of(levels, "heun_u")
    return _in_u(levels, corrects=True)


def heun_churn(
    levels: Levels,
    /,
    churn: float = 40.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.0,
) -> Sampler:
    """Heun's method in noise / signal after new noise at every step (EDM Alg. 2).

    With sigma = noise / signal, x at sigma is first carried up to sigma (1 + gamma) by noise,
    gamma = min(churn / T, sqrt(2) - 1) where churn_min <= sigma <= churn_max and 0 elsewhere, but
    no further than the path's end; from there Heun's step goes down to the next level. churn = 0 is
    `heun` on levels that it corrects. No estimate of x_0 is clipped.

    Args:
        churn, churn_min, churn_max, churn_noise: EDM's S_churn, S_tmin, S_tmax, S_noise, by default
            those for ImageNet at 64x64 (its Table 5) but for S_noise = 1.003, which makes up for
            networks that remove too much noise.

    Raises:
        ValueError: for levels of a chain, or that end in pure noise, and for numbers below 0.
    """
    path = _path_of(levels, "heun_churn")
    if min(churn, churn_min, churn_noise) < 0.0 or churn_max < churn_min:
        raise ValueError(
            f"churn = {churn}, churn_min = {churn_min}, churn_max = {churn_max} and churn_noise = "
            f"{churn_noise} must be at least 0, and churn_max at least churn_min."
        )
    check_signal(levels, "heun_churn")
    table = _churned(levels, path, churn, (churn_min, churn_max), churn_noise)

    def step(model: BoundFlow, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        u, signal, deviation, before, added, rise, lower, *at_end = row(table, t, x_t)
        examples = jnp.arange(len(x_t))
        x = signal * (x_t / before + added * _normal(noise, churn))
        x_0 = jax.vmap(model.estimate, (0, None, 0))(x, u, examples)
        eps = (x - signal * x_0) / deviation
        guess = at_end[0] * x_0 + at_end[1] * eps

        def corrected() -> X:
            again = jax.vmap(model.estimate, (0, None, 0))(guess, lower, examples)
            other = (guess - at_end[0] * again) / at_end[1]
            return guess + 0.5 * rise * (other - eps)

        x = jax.lax.cond(t > 0, corrected, lambda: guess)
        return Step(x, x_0, memory, jnp.where(t > 0, 2, 1))

    return Sampler(
        levels.num_steps,
        lambda x_T: (),
        step,
        stochastic=bool(churn),
        needs_signal=True,
        needs_path=True,
        order=0 if churn else 2,
        continuous=True,
    )


def _churned(
    levels: Levels, path: Path, churn: float, within: tuple[float, float], churn_noise: float
) -> np.ndarray:
    """f64[T, 9]: of each step u, signal and noise after churn; the signal before; the noise added.

    Then Heun's step in noise / signal, and u, signal and noise where it ends.
    """
    now = np.exp(-levels.log_ratio[1:])  # noise / signal
    below = np.exp(-levels.log_ratio[:-1])
    end = points(path, path.end)
    with np.errstate(divide="ignore"):
        most = max(now[-1], end.noise / end.signal)
    gamma = np.where(
        (now >= within[0]) & (now <= within[1]), min(churn / levels.num_steps, MOST_CHURN), 0.0
    )
    wanted = np.minimum(now * (1.0 + gamma), most)
    u = np.where(wanted > now, places(path, -np.log(wanted)), levels.time[1:])
    signal, noise = points(path, u)[:2]
    higher = noise / signal
    added = np.sqrt(np.maximum(higher**2 - now**2, 0.0)) * churn_noise
    rise = levels.signal[:-1] * (below - higher)
    at_end = (levels.time[:-1], levels.signal[:-1], levels.noise[:-1])
    return np.stack([u, signal, noise, levels.signal[1:], added, rise, *at_end], axis=1)


def _normal(noise: Noise, churn: float) -> X | float:
    """The step's draw, or nothing where none is added."""
    return noise(0) if churn else 0.0
