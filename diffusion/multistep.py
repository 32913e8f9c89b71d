"""Samplers that remember earlier estimates of x_0: DPM-Solver++ and UniPC.

Both integrate the probability flow in lambda = log(signal / noise), where it is

    x' = (noise' / noise) x + noise' int e^lambda x_0(lambda) d lambda    (DPM-Solver++ Eq. 8)

from one level to the next (primed), with x_0 replaced by a polynomial through what is known of it.
Each step is then a linear combination of x and estimates of x_0, whose weights depend on the levels
alone. The order grows from 1 at the first step, and is 1 at the last, where lambda' is infinite and
x' = x_0. "DPM-Solver++" is Lu et al. (2022), arXiv:2211.01095; "UniPC" is Zhao et al. (2023),
arXiv:2302.04867.

Their own spacing is `trailing`, to a timestep that of their authors. A walk of few steps down to
timestep 0 comes there by a step several times as long in lambda as those before, beyond which no
polynomial through them says anything of x_0.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.paths import check_signal, row
from diffusion.spacings import trailing
from diffusion.structs import BoundDenoise, Levels, Noise, Sampler, Step

X = Float[Array, "b *x"]
FEW = 15  # steps below which the last but one of DPM-Solver++ is of a lower order too


def _order(step: int, num_steps: int, order: int) -> int:
    """Of the step to level `step`: the estimates known and the steps left bound it."""
    return min(order, num_steps - step, step + 1)


def dpm_weights(levels: Levels, order: int) -> np.ndarray:
    """f64[T, 1 + order]: row t weighs x and the estimates at t, t + 1, ... in the step to t - 1.

    DPM-Solver++ Alg. 2 for order 2, and its authors' third-order multistep for 3. As in diffusers
    (and below 10 steps in its authors' code), the order falls towards the last step, of order 1,
    only where the steps are few.
    """
    signal, noise, lam, num_steps = levels.signal, levels.noise, levels.log_ratio, levels.num_steps
    weights = np.zeros((num_steps, 1 + order))
    for t in range(num_steps):
        here, there, h = t + 1, t, lam[t] - lam[t + 1]
        first = -np.expm1(-h)  # 1 - e^-h
        weights[t, 0] = noise[there] / noise[here]
        of_estimates = weights[t, 1:]
        falls = t == 0 or num_steps < FEW
        used = _order(t, num_steps, order) if falls else min(order, num_steps - t)
        of_estimates[0] = signal[there] * first
        if used == 1:
            continue
        r_0 = (lam[here] - lam[here + 1]) / h
        slope = np.array([1.0, -1.0, 0.0])[:order] / r_0  # of x_0 over h, by one difference
        if used == 2:
            of_estimates += signal[there] * first / 2.0 * slope
            continue
        r_1 = (lam[here + 1] - lam[here + 2]) / h
        older = np.array([0.0, 1.0, -1.0]) / r_1
        bend = (slope - older) / (r_0 + r_1)
        second = 1.0 - first / h
        third = second / h - 0.5
        of_estimates += signal[there] * (second * (slope + r_0 * bend) - third * bend)
    return weights


def dpm_solver_pp(levels: Levels, /, order: int = 2) -> Sampler:
    """DPM-Solver++ multistep, 2M and 3M, deterministic; one evaluation a step.

    Order 3 for unconditional models, 2 for guided ones, is its authors' advice. In their code, and
    wherever it is run since, the second difference of 3M has half of the weight that Taylor's
    series gives it; so it has here, so that numbers compare, and its error is of the second order
    like that of 2M, and smaller. `unipc` has the third order.

    Raises:
        ValueError: for another order, and for levels that end in pure noise.
    """
    if order not in (2, 3):
        raise ValueError(f"order = {order} of dpm_solver_pp must be 2 (2M) or 3 (3M).")
    check_signal(levels, "dpm_solver_pp")
    weights = dpm_weights(levels, order)

    def init(x_T: X) -> jax.Array:
        return _no_estimates(x_T, order - 1)

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: jax.Array) -> Step:
        x_0 = denoise(x_t, t).x_0
        known = _remembered(x_0, memory)
        x = _combined(row(weights, t, x_t), x_t, known)
        return Step(x, x_0, known[:, :-1])

    return Sampler(levels.num_steps, init, step, needs_signal=True, order=2, spacing=trailing)


def _no_estimates(x_T: X, count: int) -> jax.Array:
    return jnp.zeros((x_T.shape[0], count, *x_T.shape[1:]), x_T.dtype)


def _remembered(x_0: X, memory: jax.Array) -> jax.Array:
    """[B, 1 + n, ...], the newest first."""
    return jnp.concatenate([x_0[:, None], memory], axis=1)


def _combined(weights: jax.Array, x: X, estimates: jax.Array) -> X:
    """weights[0] x + the sum of weights[1 + k] estimates[:, k]."""
    parts = [weight * estimates[:, k] for k, weight in enumerate(weights[1:])]
    return weights[0] * x + sum(parts)


class _UniPCWeights(NamedTuple):
    """Row t of each is of the step to the level below t, or for the corrector to t's own.

    predictor: f64[T, 1 + order], of x and the estimates at t, t + 1, ...
    corrector: f64[T, 2 + order], of the x at t + 1 that the step began with, the estimate at t,
        and those at t + 1, t + 2, ...; row T - 1, where no step ended, is never used.
    """

    predictor: np.ndarray
    corrector: np.ndarray


def _unipc_row(levels: Levels, t: int, order: int, corrects: bool) -> tuple[float, np.ndarray]:
    """(weight of x, f64[1 + order]: of the estimate at the step's end, and of those from its start)

    UniPC Eqs. 3 and 8 with B(h) = e^h - 1 (its B_2): the weights rho solve sum_m rho_m r_m^(n-1) =
    n! phi_{n+1} / B for n = 1, 2, ..., where r_m is the place of estimate m from the start of the
    step, in units of its length.
    """
    signal, noise, lam = levels.signal, levels.noise, levels.log_ratio
    here, there, h = t + 1, t, lam[t] - lam[t + 1]
    places = [(lam[here + m] - lam[here]) / h for m in range(1, order)] + [1.0] * corrects
    weights = np.zeros(1 + order)
    step = np.expm1(-h)  # of data prediction, where h counts as -h
    weights[1] = -signal[there] * step
    if places:
        count = len(places)
        power, wanted, phi = np.zeros((count, count)), np.zeros(count), step / -h - 1.0
        for n in range(count):
            power[n] = np.array(places) ** n
            wanted[n] = phi * math.factorial(n + 1) / step
            phi = phi / -h - 1.0 / math.factorial(n + 2)
        # With one unknown UniPC takes 1/2, of the same order.
        rho = np.array([0.5]) if count == 1 else np.linalg.solve(power, wanted)
        for m, (place, weight) in enumerate(zip(places, rho, strict=True)):
            slope = -signal[there] * step * weight / place
            at_end = corrects and m == count - 1
            weights[0 if at_end else 2 + m] += slope
            weights[1] -= slope
    return noise[there] / noise[here], weights


def unipc_weights(levels: Levels, order: int) -> _UniPCWeights:
    """Of UniPC-p, p = `order`."""
    num_steps = levels.num_steps
    predictor = np.zeros((num_steps, 1 + order))
    corrector = np.zeros((num_steps, 2 + order))
    for t in range(num_steps):
        used = _order(t, num_steps, order)
        stay, row = _unipc_row(levels, t, used, corrects=False)
        predictor[t, 0], predictor[t, 1 : 1 + used] = stay, row[1:]
        if t:  # the step to t - 1 is corrected when x_0 is known there
            stay, row = _unipc_row(levels, t, used, corrects=True)
            corrector[t - 1, 0], corrector[t - 1, 1 : 2 + used] = stay, row
    return _UniPCWeights(predictor, corrector)


def unipc(levels: Levels, /, order: int = 3) -> Sampler:
    """UniPC-p with B_2(h), predicting data: one evaluation a step, used twice; deterministic.

    The estimate of x_0 where a step ended corrects that step before the next one is taken.

    Raises:
        ValueError: for an order that is not 1, 2 or 3, and for levels that end in pure noise.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order = {order} of unipc must be 1, 2 or 3.")
    check_signal(levels, "unipc")
    weights = unipc_weights(levels, order)
    last = levels.num_steps - 1

    def init(x_T: X) -> tuple[X, jax.Array]:
        return x_T, _no_estimates(x_T, order)

    def step(denoise: BoundDenoise, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        before, estimates = memory
        x_0 = denoise(x_t, t).x_0
        known = _remembered(x_0, estimates)
        corrected = _combined(row(weights.corrector, t, x_t), before, known)
        x = jnp.where(t < last, corrected, x_t)
        known = known[:, :-1]
        return Step(_combined(row(weights.predictor, t, x_t), x, known), x_0, (x, known))

    return Sampler(
        levels.num_steps, init, step, needs_signal=True, order=order + 1, spacing=trailing
    )
