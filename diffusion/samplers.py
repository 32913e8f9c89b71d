"""Samplers: what one step from x_t to x_{t-1} does, on the levels of a chain or of a path.

Every entry of SAMPLERS is (levels, /, **options) -> Sampler. At t = 0 all of them end in the
estimate of x_0, the data's own noise level. Coefficients are derived in float64 from the levels
and cast once, to the dtype of x_t.
"""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion.flow_sampler import flow
from diffusion.multistep import dpm_solver_pp, unipc
from diffusion.path_samplers import euler, heun_churn, heun_u
from diffusion.paths import row
from diffusion.structs import BoundDenoise, Levels, Noise, Sampler, Step

X = Float[Array, "b *x"]
STEEPEST = 10.0  # signal' (noise / signal - noise' / signal') of a step that Heun's method corrects


def _nothing(x_T: X) -> tuple[()]:
    """The memory of a Markov sampler."""
    return ()


def ancestral(levels: Levels, /) -> Sampler:
    """x_{t-1} = mean + exp(log_variance / 2) z, with z = 0 in the last step (DDPM Alg. 2)."""

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        prediction = denoise(x_t, t)
        deviation = jnp.where(t > 0, jnp.exp(0.5 * prediction.log_variance), 0.0)
        return Step(prediction.mean + deviation * noise(0), prediction.x_0, memory)

    return Sampler(levels.num_steps, _nothing, step, stochastic=True, uses_variance=True)


def ddim(levels: Levels, /, eta: float | int = 0.0) -> Sampler:
    """x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - s^2) eps + s z.

    DDIM Eq. 12, with s = eta beta-tilde_t^(1/2) (DDIM Eq. 16): eta = 0 is deterministic, eta = 1 is
    `ancestral` with the variance fixed_small. eps is the one that belongs to the estimate of x_0,
    clipped where that is clipped.

    Raises:
        ValueError: unless 0 <= eta <= 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta = {eta} must lie between 0 (deterministic) and 1 (ancestral).")
    table = np.stack(
        [
            levels.signal[:-1],
            np.sqrt(np.maximum(levels.noise[:-1] ** 2 - eta**2 * levels.variance, 0.0)),
            eta * np.sqrt(levels.variance),
        ],
        axis=1,
    )

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        prediction = denoise(x_t, t)
        signal, direction, deviation = row(table, t, x_t)
        x = signal * prediction.x_0 + direction * prediction.eps
        if eta:
            x = x + deviation * noise(0)
        return Step(x, prediction.x_0, memory)

    return Sampler(levels.num_steps, _nothing, step, stochastic=bool(eta), order=1)


def heun(levels: Levels, /) -> Sampler:
    """Heun's method on the probability flow d(x / signal) / d(noise / signal) = eps (DDIM Eq. 14).

    The trapezoidal rule with a DDIM step for its first guess (EDM Alg. 1 without noise): 2 T - 1
    evaluations, less one for each step that is left at the guess. Those are the last, to clean
    data, and such as multiply a difference of eps by more than STEEPEST deviations of x: the first
    of a cosine chain, where noise / signal falls from thousands, the first of any chain in 3 or 4
    steps, and one from pure noise, where noise / signal is infinite.
    """
    with np.errstate(divide="ignore"):
        ratio = levels.noise / levels.signal
    rise = levels.signal[:-1] * (ratio[:-1] - ratio[1:])
    size = abs(rise) / np.hypot(levels.signal[:-1], levels.noise[:-1])
    corrects = (size <= STEEPEST) & (np.arange(levels.num_steps) > 0)
    rise = np.where(corrects, rise, 0.0)
    table = np.stack([levels.signal[:-1], levels.noise[:-1], rise], axis=1)

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        prediction, again = denoise(x_t, t), jnp.asarray(corrects)[t]
        signal, direction, rise = row(table, t, x_t)
        guess = signal * prediction.x_0 + direction * prediction.eps

        def corrected() -> jax.Array:
            return guess + 0.5 * rise * (denoise(guess, t - 1).eps - prediction.eps)

        x = jax.lax.cond(again, corrected, lambda: guess)
        return Step(x, prediction.x_0, memory, jnp.where(again, 2, 1))

    return Sampler(levels.num_steps, _nothing, step, order=2)


class Langevin(NamedTuple):
    """Langevin dynamics at a fixed noise level.

    num: of iterations.
    size: of each in units of the variance of the noise, 1 - alpha_bar_t.
    """

    num: int
    size: float

    def __call__(
        self, denoise: BoundDenoise, x: X, t: jax.Array, sigma: jax.Array, noise: Noise, first: int
    ) -> tuple[X, X]:
        """x <- x + size sigma^2 score(x) + sqrt(2 size) sigma z, `num` times (NCSN Alg. 1).

        Its stationary law is the marginal of x_t, up to the step's size. `noise(first)` and those
        after it are used. Beside the last x, the estimate of x_0 where it began.
        """

        def body(j: jax.Array, state: tuple[X, X]) -> tuple[X, X]:
            x, x_0 = state
            prediction = denoise(x, t)
            drift = self.size * sigma * prediction.eps  # score = -eps / sigma
            spread = float(np.sqrt(2.0 * self.size)) * sigma
            return x - drift + spread * noise(first + j), jnp.where(j == 0, prediction.x_0, x_0)

        return jax.lax.fori_loop(0, self.num, body, (x, x))


def _langevin(num: int, size: float) -> Langevin:
    if not 0.0 < size < 1.0:
        raise ValueError(
            f"step_size = {size} must lie between 0 and 1: it is in units of the noise's variance, "
            "and longer steps diverge."
        )
    return Langevin(num, size)


def annealed_langevin(
    levels: Levels, /, steps_per_level: int = 5, step_size: float = 0.1
) -> Sampler:
    """Langevin dynamics at every noise level in turn, from the score alone (NCSN Alg. 1).

    From level to level x is handed on in the scale in which signal^2 + noise^2 is 1, as it is on
    every chain, and all levels have about the variance of the data (Song Alg. 3 without its
    predictor). NCSN hands on x / signal: its noise then grows from one level to the next by the
    ratio of their signals, beyond all bounds where levels are far apart, as the first of a cosine
    chain are. After the last level comes one evaluation more, for the estimate of x_0.

    Raises:
        ValueError: for a step size that diverges.
    """
    langevin, length = _langevin(steps_per_level, step_size), np.hypot(levels.signal, levels.noise)
    table = np.stack([levels.noise[1:], length[:-1] / length[1:]], axis=1)

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        sigma, scale = row(table, t, x_t)
        x, x_0 = langevin(denoise, x_t, t, sigma, noise, 0)
        x = jax.lax.cond(t > 0, lambda: scale * x, lambda: denoise(x, t).x_0)
        return Step(x, x_0, memory, steps_per_level + (t == 0))

    return Sampler(levels.num_steps, _nothing, step, stochastic=True)


def predictor_corrector(
    levels: Levels, /, corrector_steps: int = 1, step_size: float = 0.1
) -> Sampler:
    """An ancestral step, then Langevin dynamics at the level where it ended (Song Alg. 3).

    Song et al. choose the step by the norms of score and noise over a batch; here its size is fixed
    in units of the noise's variance, so that a sample does not depend on its batch. No correction
    follows the last step.

    Raises:
        ValueError: for a step size that diverges.
    """
    langevin, predictor = _langevin(corrector_steps, step_size), ancestral(levels)
    table = levels.noise[:-1, None]

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        found = predictor.step(denoise, x_t, t, noise, memory)
        (sigma,) = row(table, t, x_t)
        x = jax.lax.cond(
            t > 0,
            lambda: langevin(denoise, found.x, t - 1, sigma, noise, 1)[0],
            lambda: found.x,
        )
        return Step(x, found.x_0, memory, jnp.where(t > 0, 1 + corrector_steps, 1))

    return Sampler(levels.num_steps, _nothing, step, stochastic=True, uses_variance=True)


def ddim_encode(
    levels: Levels, denoise: BoundDenoise, x_0: X, timesteps: Int[Array, " n"] | None = None
) -> X:
    """x_T of an image: DDIM's deterministic steps taken backwards (DDIM section 4.3).

    x_{t'} = sqrt(alpha_bar_{t'}) x_0(x_t, t) + sqrt(1 - alpha_bar_{t'}) eps(x_t, t) from each of
    the timesteps to the next, t', and first from clean data, which the network is told is at its
    timestep 0, visited or not. Decoding it by `ddim` on the chain of these timesteps gives x_0 back
    but for an error that is of the first order in their number.

    Args:
        levels: of a chain with the network's timestep 0, such as the whole one, or of a path.
        denoise: on these levels; of an estimate that is clipped the way back is another.
        x_0: f32[B, ...], clean data.
        timesteps: of these levels, rising, that are visited; None is all of them.

    Raises:
        ValueError: for a chain without timestep 0.
    """
    if levels.path is None and (first := levels.told[1]) != 0:
        raise ValueError(
            f"this chain begins at the network's timestep {first:g}, and clean data is at 0: give "
            "the whole chain, and the timesteps to visit."
        )
    table = np.stack([levels.signal[1:], levels.noise[1:]], axis=1)
    visited = jnp.arange(levels.num_steps) if timesteps is None else timesteps

    def body(x: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        before, t = step
        prediction = denoise(x, before)
        signal, noise = row(table, t, x)
        return signal * prediction.x_0 + noise * prediction.eps, None

    before = jnp.concatenate([jnp.zeros_like(visited[:1]), visited[:-1]])
    return jax.lax.scan(body, x_0, (before, visited))[0]


SAMPLERS = MappingProxyType(
    {
        "ancestral": ancestral,
        "ddim": ddim,
        "heun": heun,
        "dpm_solver_pp": dpm_solver_pp,
        "unipc": unipc,
        "flow": flow,
        "euler": euler,
        "heun_u": heun_u,
        "heun_churn": heun_churn,
        "annealed_langevin": annealed_langevin,
        "predictor_corrector": predictor_corrector,
    }
)
