"""Times of training: how t, or u of a path, is drawn.

Every entry of TIMES is (process, /, **options) -> Times, t being timesteps of its chain or, where
it has a path, u between the path's ends. A weighting and a density of u are one choice in two
parts: the mean loss depends on their product alone (Kingma and Gao 2023), so that `weigh=True`
divides the density out.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.special import ndtr

from diffusion.paths import at, place, points
from diffusion.structs import Path, Process, Times

PerExample = Float[Array, " b"]
T = Int[Array, " b"]
ROOT_2_PI = float(np.sqrt(2.0 * np.pi))


def _independent(draw: Callable[[Key[Array, " b"]], tuple[jax.Array, PerExample]]) -> Times:
    """Of draws that remember nothing."""
    return Times(lambda: (), lambda state, keys: draw(keys), lambda state, t, losses: state)


def _path_of(process: Process, name: str) -> Path:
    if process.path is None:
        raise ValueError(
            f"{name!r} draws u in continuous time, which a chain does not have. Choose uniform or "
            "loss_second_moment, or a path."
        )
    return process.path


def _unit(keys: Key[Array, " b"]) -> PerExample:
    """f32[B] uniform in [0, 1), one a key."""
    return jax.vmap(jax.random.uniform)(keys)


def _inside(shares: PerExample) -> PerExample:
    """Shares of which none is 0 or 1, where a normal quantile is infinite."""
    return jnp.clip(shares, 2.0**-24, 1.0 - 2.0**-24)


def _spread(keys: Key[Array, " b"]) -> PerExample:
    """f32[B] evenly spread over [0, 1) from the draw of the first key: (u + i / B) mod 1."""
    return (_unit(keys[:1]) + jnp.arange(len(keys)) / len(keys)) % 1.0


def uniform(process: Process, /) -> Times:
    """t uniform on 0 .. T - 1 (DDPM Alg. 1), or u uniform between a path's ends."""
    num_timesteps, path = process.schedule.num_timesteps, process.path

    def draw(keys: Key[Array, " b"]) -> tuple[jax.Array, PerExample]:
        if path is not None:
            u = path.start + (path.end - path.start) * _unit(keys)
            return u, jnp.ones(u.shape)
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)
        return t, jnp.ones(t.shape)

    return _independent(draw)


def antithetic(process: Process, /) -> Times:
    """u uniform between a path's ends, and evenly spread within a batch (VDM App. I.1).

    Of one draw for the batch, that of its first example: example i has (u + i / B) mod 1.

    Raises:
        ValueError: for a chain.
    """
    path = _path_of(process, "antithetic")

    def draw(keys: Key[Array, " b"]) -> tuple[jax.Array, PerExample]:
        u = path.start + (path.end - path.start) * _spread(keys)
        return u, jnp.ones(u.shape)

    return _independent(draw)


def logit_normal(
    process: Process,
    /,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    weigh: bool = False,
) -> Times:
    """A share sigmoid(mean + std n) of the way, n standard normal (Esser et al. 2024, Eq. 19).

    Args:
        mean, std: a larger mean draws more noise.
        shift: r of their Eq. 23 for larger images: a share s becomes r s / (1 + (r - 1) s).
        weigh: divide the density out, so that the mean loss is that of `uniform`.

    Raises:
        ValueError: for a chain, and unless std and shift are above 0.
    """
    path = _path_of(process, "logit_normal")
    if not (std > 0.0 and shift > 0.0):
        raise ValueError(f"std = {std} and shift = {shift} must be above 0.")
    length = path.end - path.start

    def draw(keys: Key[Array, " b"]) -> tuple[jax.Array, PerExample]:
        n = jax.vmap(jax.random.normal)(keys)
        # The shift adds its logarithm to the logit.
        share = jax.nn.sigmoid(mean + std * n + math.log(shift))
        density = jnp.exp(-0.5 * n**2) / (ROOT_2_PI * std * share * (1.0 - share))
        return path.start + length * share, 1.0 / density if weigh else jnp.ones(share.shape)

    return _independent(draw)


def log_normal(
    process: Process, /, mean: float = -1.2, std: float = 1.2, weigh: bool = False
) -> Times:
    """log(noise / signal) normal (EDM Table 1, for CIFAR-10), cut off at the path's ends.

    Args:
        mean, std: of the logarithm before it is cut off.
        weigh: divide the density of u out, so that the mean loss is that of `uniform`; for ends of
            the path within some five std of the mean, since beyond float32 draws nothing.

    Raises:
        ValueError: for a chain, unless std is above 0, and for a density that lies off the path.
    """
    path = _path_of(process, "log_normal")
    if not std > 0.0:
        raise ValueError(f"std = {std} must be above 0.")
    ends = points(path, [path.start, path.end])
    with np.errstate(divide="ignore"):
        logs = np.log(ends.noise / ends.signal)
    low, high = (float(p) for p in ndtr((logs - mean) / std))
    if not high - low > 1e-3:
        raise ValueError(
            f"log(noise / signal) of mean {mean} and std {std} lies off the path, on which it goes "
            f"from {logs[0]:.3g} to {logs[1]:.3g}."
        )

    def draw(keys: Key[Array, " b"]) -> tuple[jax.Array, PerExample]:
        n = jax.scipy.special.ndtri(low + (high - low) * _inside(_unit(keys)))
        u = place(path, -(mean + std * n))
        now = at(path, u)
        slope = now.d_noise / now.noise - now.d_signal / now.signal
        density = slope * jnp.exp(-0.5 * n**2) / (ROOT_2_PI * std * (high - low))
        return u, 1.0 / ((path.end - path.start) * density) if weigh else jnp.ones(u.shape)

    return _independent(draw)


class LossHistory(NamedTuple):
    """The last losses seen at each timestep, as a ring buffer."""

    losses: Float[Array, "T history"]
    seen: Int[Array, " T"]  # how many there ever were


def whole_parts(
    p: Float[Array, " T"],
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, jax.Array]]]:
    """Probabilities as whole parts of a sum of about 2^31, from which to draw without rounding.

    A cumulative sum in float32 is off by some 6e-8, a quarter of what a rare timestep of a chain
    of T = 4000 has; integers add exactly.

    Returns:
        total: u32[], the number of parts.
        locate: u u32[B], each in [0, total) -> (t i32[B], the exact probability of each f32[B]).
    """
    parts = jnp.maximum((p * 2.0**31).astype(jnp.uint32), 1)
    cumulative = jnp.cumsum(parts, dtype=jnp.uint32)
    total = cumulative[-1]

    def locate(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.searchsorted(cumulative, u, side="right").astype(jnp.int32)
        return t, parts[t].astype(jnp.float32) / total.astype(jnp.float32)

    return total, locate


class _Remembered(NamedTuple):
    """The last losses at each of several places, and the shares of draws that they ask for.

    init: () -> state, without losses.
    probabilities: state -> f32[T] in proportion to sqrt(E[L_t^2]) (IDDPM Eq. 18), but for
        `uniform_share` of them; all equal until every place has a full history.
    update: (state, places i32[B], losses f32[B]) -> state.
    """

    init: Callable[[], LossHistory]
    probabilities: Callable[[LossHistory], Float[Array, " T"]]
    update: Callable[[LossHistory, T, PerExample], LossHistory]


def _remembered(size: int, history: int, uniform_share: float) -> _Remembered:
    if history < 1 or not 0.0 < uniform_share <= 1.0:
        raise ValueError(
            f"got history = {history} and uniform_share = {uniform_share}; "
            "history must be at least 1 and uniform_share in (0, 1]."
        )

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((size, history)), jnp.zeros(size, jnp.int32))

    def probabilities(state: LossHistory) -> jax.Array:
        root = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        share = root / jnp.maximum(jnp.sum(root), jnp.finfo(root.dtype).tiny)
        mixed = (1.0 - uniform_share) * share + uniform_share / size
        full = jnp.all(state.seen >= history) & (jnp.sum(root) > 0.0)
        return jnp.where(full, mixed, 1.0 / size)

    def update(state: LossHistory, t: T, losses: PerExample) -> LossHistory:
        # Several examples may share a t: the k-th of them takes the k-th next slot, and of more
        # than `history` only the last ones are kept.
        same = t[:, None] == t[None, :]
        rank = jnp.sum(jnp.tril(same, -1), axis=1)
        kept = rank >= jnp.sum(same, axis=1) - history
        slot = jnp.where(kept, (state.seen[t] + rank) % history, history)
        losses = jax.lax.stop_gradient(losses)
        return LossHistory(
            state.losses.at[t, slot].set(losses, mode="drop"), state.seen.at[t].add(1)
        )

    return _Remembered(init, probabilities, update)


def loss_second_moment(
    process: Process, /, history: int = 10, uniform_share: float = 1e-3
) -> Times:
    """t drawn in proportion to sqrt(E[L_t^2]) over the last `history` losses (IDDPM Eq. 18).

    Uniform until every timestep has a full history; `uniform_share` of the draws stay uniform so
    that no timestep is forgotten. The weights 1 / (T p_t) keep the loss's mean.

    Raises:
        ValueError: for a path, and unless history >= 1 and 0 < uniform_share <= 1.
    """
    if process.path is not None:
        raise ValueError(
            "'loss_second_moment' remembers the loss of every timestep of a chain, and continuous "
            "time has none. Choose uniform, antithetic, learned, logit_normal or log_normal."
        )
    num_timesteps = process.schedule.num_timesteps
    remembered = _remembered(num_timesteps, history, uniform_share)

    def sample(state: LossHistory, keys: Key[Array, " b"]) -> tuple[T, PerExample]:
        total, locate = whole_parts(remembered.probabilities(state))
        t, p = locate(jax.vmap(lambda key: jax.random.randint(key, (), 0, total, jnp.uint32))(keys))
        return t, 1.0 / (num_timesteps * p)

    return Times(remembered.init, sample, remembered.update)


def piecewise_linear(
    probabilities: Float[Array, " k"], shares: PerExample
) -> tuple[PerExample, PerExample]:
    """The monotone map of [0, 1) onto itself that gives each of k equal parts its probability.

    It is the inverse of a distribution function, so that of uniform shares it makes draws.

    Returns:
        f32[B] in [0, 1], and its derivative by the shares, f32[B]: one over the density there.
    """
    count = len(probabilities)
    stops = jnp.cumsum(probabilities)
    edges = jnp.concatenate([jnp.zeros(1), stops / stops[-1]])
    part = jnp.clip(jnp.searchsorted(edges, shares, side="right") - 1, 0, count - 1)
    width = edges[part + 1] - edges[part]
    within = jnp.clip((shares - edges[part]) / width, 0.0, 1.0)
    return (part + within) / count, 1.0 / (count * width)


def learned(
    process: Process, /, parts: int = 64, history: int = 16, uniform_share: float = 1e-2
) -> Times:
    """u of a learned monotone function of antithetic shares (VDM section 5.1, App. I.2).

    VDM learns the log SNR as a function of a uniform share, between two ends, to minimise the
    variance of the loss. Where the network is told the log SNR, as on `linear_snr`, the mean loss,
    the bound and what is sampled at given levels do not depend on that function: it is a density of
    u on a fixed path, its slope the weight that divides the density out. Here it is
    linear in each of `parts` of the path, for which the minimum is known, a slope of
    1 / sqrt(E[L^2]) from the last losses there; it needs no gradient and no parameters.

    Args:
        parts: equally long, of the path.
        history: losses that are remembered of each part; u is uniform until all have so many.
        uniform_share: of the draws, so that no part is forgotten.

    Raises:
        ValueError: for a chain, and unless parts >= 1, history >= 1 and 0 < uniform_share <= 1.
    """
    path = _path_of(process, "learned")
    if parts < 1:
        raise ValueError(f"parts = {parts} must be at least 1.")
    remembered, length = _remembered(parts, history, uniform_share), path.end - path.start

    def sample(state: LossHistory, keys: Key[Array, " b"]) -> tuple[PerExample, PerExample]:
        share, slope = piecewise_linear(remembered.probabilities(state), _spread(keys))
        return path.start + length * share, slope

    def update(state: LossHistory, u: PerExample, losses: PerExample) -> LossHistory:
        part = ((u - path.start) / length * parts).astype(jnp.int32)
        return remembered.update(state, jnp.clip(part, 0, parts - 1), losses)

    return Times(remembered.init, sample, update)


TIMES = MappingProxyType(
    {
        "uniform": uniform,
        "loss_second_moment": loss_second_moment,
        "antithetic": antithetic,
        "learned": learned,
        "logit_normal": logit_normal,
        "log_normal": log_normal,
    }
)
