"""Continuous time: paths x_u = signal(u) x_0 + noise(u) eps for real u, and levels on them.

Flow matching, EDM, the variance-preserving diffusions and a discrete chain are paths, which differ
in two functions of u alone. u grows with the noise. Every entry of PATHS is (**options) -> Path.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from diffusion.structs import Levels, Path, Point, Schedule

TOLD = 1000.0  # of u = 1, as the network of a chain of T = 1000 is told its timesteps
U = Float[Array, "*u"]


def at(path: Path, u: U) -> Point:
    """The coefficients at u with their derivatives, f32 of u's shape each."""
    one = jnp.ones_like(u)
    signal, d_signal = jax.jvp(path.signal, (u,), (one,))
    noise, d_noise = jax.jvp(path.noise, (u,), (one,))
    return Point(signal, noise, d_signal, d_noise, path.told(u))


def points(path: Path, u: Any) -> Any:
    """A `Point` at concrete u, of numpy's f64 arrays, also while something else is traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return jax.tree.map(np.asarray, at(path, jnp.asarray(u, jnp.float64)))


# --- Formulations ---


def _check_start(start: float) -> None:
    if not 0.0 < start < 1.0:
        raise ValueError(f"start = {start} must lie between 0 and 1.")


def _check_log_snr(log_snr_min: float | int, log_snr_max: float | int) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min = {log_snr_min} must be below log_snr_max = {log_snr_max}.")


def straight(start: float = 1e-3) -> Path:
    """x_u = (1 - u) x_0 + u eps, u in (0, 1] (rectified flow, Liu et al. 2023; flow matching).

    u = 1 is noise here; flow matching often counts the other way.

    Args:
        start: the least u that the network is asked at.

    Raises:
        ValueError: unless 0 < start < 1.
    """
    _check_start(start)
    return Path(lambda u: 1.0 - u, lambda u: u, lambda u: TOLD * u, start=start, end=1.0)


def edm(noise_min: float = 0.002, noise_max: float = 80.0) -> Path:
    """x_u = x_0 + u eps: u is the noise itself (Karras et al. 2022), and its quarter log is told.

    Raises:
        ValueError: unless 0 < noise_min < noise_max.
    """
    if not 0.0 < noise_min < noise_max:
        raise ValueError(
            f"noise_min = {noise_min} must be above 0 and below noise_max = {noise_max}."
        )
    return Path(
        jnp.ones_like,
        lambda u: u,
        lambda u: 0.25 * jnp.log(u),
        start=noise_min,
        end=noise_max,
        deviation=noise_max,
        spacing="karras",
    )


def cosine(log_snr_min: float | int = -20.0, log_snr_max: float | int = 20.0) -> Path:
    """signal = cos(pi u / 2), noise = sin(pi u / 2), from log_snr_max down to log_snr_min.

    The continuous limit of IDDPM's schedule (Eq. 17) without its offset, between ends as those of
    Hoogeboom et al. (2023).

    Raises:
        ValueError: unless log_snr_min < log_snr_max.
    """
    _check_log_snr(log_snr_min, log_snr_max)
    right = 0.5 * np.pi
    start = float(np.arctan(np.exp(-0.5 * log_snr_max)) / right)
    rest = float(np.arctan(np.exp(0.5 * log_snr_min)) / right)
    return Path(
        lambda u: jnp.sin(right * (1.0 - u)),  # near u = 1 with all its digits
        lambda u: jnp.sin(right * u),
        lambda u: TOLD * u,
        start=start,
        end=1.0 - rest,
    )


def vp(beta_min: float = 0.1, beta_max: float = 20.0, start: float = 1e-3) -> Path:
    """log alpha_bar = -beta_min u - (beta_max - beta_min) u^2 / 2, u in (0, 1] (Song Eq. 33).

    The limit of DDPM's linear chain, whose betas are these over T.

    Args:
        beta_min, beta_max: of u = 0 and u = 1.
        start: the least u that the network is asked at.

    Raises:
        ValueError: unless 0 < beta_min < beta_max and 0 < start < 1.
    """
    _check_start(start)
    if not 0.0 < beta_min < beta_max:
        raise ValueError(f"beta_min = {beta_min} must be above 0 and below beta_max = {beta_max}.")

    def log_alpha_bar(u: U) -> U:
        return -u * (beta_min + 0.5 * (beta_max - beta_min) * u)

    return _variance_preserving(log_alpha_bar, lambda u: TOLD * u, start, 1.0)


def linear_snr(log_snr_min: float | int = -5.0, log_snr_max: float | int = 13.3) -> Path:
    """The log SNR falls linearly in u in [0, 1], and the variance is kept (VDM section 4).

    Its ends are those of VDM's code.

    Raises:
        ValueError: unless log_snr_min < log_snr_max.
    """
    _check_log_snr(log_snr_min, log_snr_max)

    def log_alpha_bar(u: U) -> U:
        return jax.nn.log_sigmoid(log_snr_max + (log_snr_min - log_snr_max) * u)

    return _variance_preserving(log_alpha_bar, lambda u: TOLD * u, 0.0, 1.0, spacing="uniform")


def _variance_preserving(
    log_alpha_bar: Callable[[U], U],
    told: Callable[[U], U],
    start: float,
    end: float,
    spacing: str = "trailing",
) -> Path:
    """The path with signal^2 + noise^2 = 1 and this signal."""
    return Path(
        lambda u: jnp.exp(0.5 * log_alpha_bar(u)),
        lambda u: jnp.sqrt(-jnp.expm1(log_alpha_bar(u))),
        told,
        start,
        end,
        spacing=spacing,
    )


# --- A discrete chain as a path ---


def _slopes(rises: np.ndarray) -> np.ndarray:
    """f64[n + 1] derivatives at the knots from the n negative rises between them, at unit spacing.

    Those of the cubic spline that starts and ends with the slopes of the parabolas through three
    knots: its second derivative is continuous, and each jump of it would cost an adaptive solver
    steps. Where the spline might turn, its slope is brought to between 0 and three times
    either neighbouring rise, which suffices for monotone cubics (Fritsch and Carlson 1980).
    """
    if rises.size == 1:
        return np.repeat(rises, 2)
    first, last = 1.5 * rises[0] - 0.5 * rises[1], 1.5 * rises[-1] - 0.5 * rises[-2]
    right = 3.0 * (rises[:-1] + rises[1:])
    right[0] -= first
    right[-1] -= last
    bands = np.array([[1.0], [4.0], [1.0]]).repeat(right.size, axis=1)  # s[k-1] + 4 s[k] + s[k+1]
    slopes = np.concatenate([[first], scipy.linalg.solve_banded((1, 1), bands, right), [last]])
    nearest = np.maximum(np.append(rises, rises[-1]), np.append(rises[0], rises))
    return np.clip(slopes, 3.0 * nearest, 0.0)


def _log_alphas(schedule: Schedule) -> np.ndarray:
    """log alpha_t, f64[T], from concrete tables; -inf where beta_t = 1.

    Each float32 table where it has digits: alpha near 1 and beta near 1 have lost theirs.
    """
    beta, alpha = (np.asarray(table, np.float64) for table in (schedule.beta, schedule.alpha))
    with np.errstate(divide="ignore"):
        return np.where(beta < 0.5, np.log1p(-np.minimum(beta, 0.5)), np.log(alpha))


def cubics(schedule: Schedule) -> np.ndarray:
    """f64[T - 1, 4]: row k is log alpha_bar on [k, k + 1] in rising powers of u - k.

    A monotone cubic spline through the chain's values, continuously differentiable, and twice so
    wherever the chain is smooth.

    Raises:
        ValueError: for a chain of one step, or one that ends in pure noise, which no finite flow
            reaches.
    """
    beta = np.asarray(schedule.beta)
    if beta.size < 2:
        raise ValueError("a probability flow needs a chain of at least 2 timesteps, got 1.")
    if beta[-1] >= 1.0:
        raise ValueError(
            f"beta[{beta.size - 1}] is 1: this chain ends in pure noise (log alpha_bar = -inf), "
            "which its probability flow reaches in no finite time. Choose a schedule whose last "
            "beta is below 1."
        )
    steps = _log_alphas(schedule)
    values, rises = np.cumsum(steps), steps[1:]
    slopes = _slopes(rises)
    left, right = slopes[:-1], slopes[1:]
    powers = [values[:-1], left, 3.0 * rises - 2.0 * left - right, left + right - 2.0 * rises]
    return np.stack(powers, axis=1)


def through(schedule: Schedule) -> Path:
    """The path through a chain of concrete tables, met at the integers u = t in [0, T - 1].

    What the network is told is interpolated linearly. Its start is the first timestep's noise and
    not clean data; its law at the end is taken for N(0, I), as DDPM takes it.

    Raises:
        ValueError: as `cubics`.
    """
    table, times = cubics(schedule), np.asarray(schedule.told, np.float64)
    count = len(table)

    def place(u: U) -> tuple[jax.Array, U]:
        k = jnp.clip(jnp.floor(u).astype(jnp.int32), 0, count - 1)
        return k, u - k

    def log_alpha_bar(u: U) -> U:
        k, s = place(u)
        a, b, c, d = jnp.moveaxis(jnp.asarray(table, u.dtype)[k], -1, 0)
        return a + s * (b + s * (c + s * d))

    def told(u: U) -> U:
        (k, s), t = place(u), jnp.asarray(times, u.dtype)
        return t[k] + s * (t[k + 1] - t[k])

    return _variance_preserving(log_alpha_bar, told, 0.0, float(count))


# --- Levels ---


def levels_of(chain: Schedule) -> Levels:
    """The levels of a chain of concrete tables, respaced or not."""
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(_log_alphas(chain))])
    variance = -np.expm1(log_alpha_bar)
    with np.errstate(divide="ignore"):
        log_ratio = 0.5 * (log_alpha_bar - np.log(variance))
    told = np.asarray(chain.told, np.float64)
    told = np.concatenate([told[:1], told])
    return Levels(
        time=told,
        signal=np.exp(0.5 * log_alpha_bar),
        noise=np.sqrt(variance),
        log_ratio=log_ratio,
        told=told,
        variance=np.asarray(chain.posterior_variance, np.float64),
    )


def grid(path: Path, times: Float[np.ndarray, " T"]) -> Levels:
    """The levels of a walk through these u of a path, and to clean data after the first of them.

    Args:
        times: f64[T], rising, in [path.start, path.end].

    Raises:
        ValueError: for others.
    """
    u = np.asarray(times, np.float64)
    slack = 1e-9 * path.end
    if u.ndim != 1 or u.size == 0 or not (np.diff(u) > 0.0).all():
        raise ValueError(f"times must be a non-empty rising row of numbers, got {times!r}.")
    if u[0] < path.start - slack or u[-1] > path.end + slack:
        raise ValueError(
            f"times from {u[0]:g} to {u[-1]:g} leave the path, which is from {path.start:g} to "
            f"{path.end:g}."
        )
    signal, noise, *rest = points(path, u)
    d_signal, d_noise, told = (np.append(x[:1], x) for x in rest)
    signal, noise = np.append(1.0, signal), np.append(0.0, noise)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(signal) - np.log(noise)
    return Levels(
        time=np.append(0.0, u),
        signal=signal,
        noise=noise,
        log_ratio=log_ratio,
        told=told,
        variance=-(noise[:-1] ** 2) * np.expm1(2.0 * np.diff(log_ratio)),
        d_signal=d_signal,
        d_noise=d_noise,
        path=path,
    )


def place(path: Path, log_ratio: U) -> U:
    """u in [start, end] at which log(signal / noise) has these values, by bisection.

    Of log_ratio's dtype; beyond the ends' values, the ends.
    """

    def halve(_: Any, ends: tuple[U, U]) -> tuple[U, U]:
        low, high = ends
        middle = 0.5 * (low + high)
        before = jnp.log(path.signal(middle)) - jnp.log(path.noise(middle)) > log_ratio
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    low, high = jnp.full_like(log_ratio, path.start), jnp.full_like(log_ratio, path.end)
    return jax.lax.fori_loop(0, 64, halve, (low, high))[1]


def places(path: Path, log_ratio: Any) -> np.ndarray:
    """`place` for concrete numbers: an f64 array of numpy, also while something else is traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(place(path, jnp.asarray(log_ratio, jnp.float64)))


def check_signal(levels: Levels, sampler: str) -> None:
    """Refuses a sampler that divides by the signal on levels that end in pure noise.

    Raises:
        ValueError: naming the sampler and what to choose instead.
    """
    if not (levels.signal > 0.0).all():
        ends, other = "chain ends in pure noise (its last beta is 1)", "another schedule"
        if levels.path is not None:
            ends, other = (
                "path ends in pure noise",
                "the spacing log_snr or karras, without the end",
            )
        raise ValueError(
            f"the sampler {sampler!r} needs some signal at every level, and this {ends}. Choose "
            f"ancestral or ddim, or {other}."
        )


def row(table: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
    """Row t of f64[T, n], in the dtype of `like`."""
    return jnp.asarray(table, like.dtype)[t]


PATHS = MappingProxyType(
    {"straight": straight, "edm": edm, "cosine": cosine, "vp": vp, "linear_snr": linear_snr}
)
