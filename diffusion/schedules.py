"""Noise schedules: float64 arrays of beta, and the tables that follow from them."""

from collections.abc import Sequence
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from diffusion.structs import Levels, Schedule

Betas = Float64[np.ndarray, " T"]


def _check_length(num_timesteps: int) -> None:
    if isinstance(num_timesteps, bool) or not isinstance(num_timesteps, (int, np.integer)):
        raise ValueError(f"num_timesteps must be an integer, got {num_timesteps!r}.")
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")


def linear(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Betas:
    """beta rising linearly, the paper's choice with T = 1000 (DDPM section 4)."""
    _check_length(num_timesteps)
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def quadratic(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Betas:
    """The square of a linear rise in the root of beta (DDPM App. B, among the choices tried)."""
    _check_length(num_timesteps)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=np.float64) ** 2


def sigmoid(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Betas:
    """A logistic rise over [-6, 6], scaled to [beta_start, beta_end] (DDIM's code)."""
    _check_length(num_timesteps)
    rise = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_timesteps, dtype=np.float64)))
    return beta_start + (beta_end - beta_start) * rise


def constant(num_timesteps: int, beta: float = 0.02) -> Betas:
    """The same beta at every step (DDPM App. B, among the choices tried)."""
    _check_length(num_timesteps)
    return np.full(num_timesteps, beta, dtype=np.float64)


def jsd(num_timesteps: int) -> Betas:
    """beta_t = 1 / (T - t), which ends in pure noise: 1/T, 1/(T-1), ..., 1 (DPM, 2015)."""
    _check_length(num_timesteps)
    return 1.0 / np.arange(num_timesteps, 0, -1, dtype=np.float64)


def _warmup(num_timesteps: int, beta_start: float, beta_end: float, share: float) -> Betas:
    _check_length(num_timesteps)
    betas = np.full(num_timesteps, beta_end, dtype=np.float64)
    rising = int(num_timesteps * share)
    betas[:rising] = np.linspace(beta_start, beta_end, rising, dtype=np.float64)
    return betas


def warmup10(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Betas:
    """A linear rise over the first tenth of the chain, constant after it."""
    return _warmup(num_timesteps, beta_start, beta_end, 0.1)


def warmup50(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Betas:
    """A linear rise over the first half of the chain, constant after it."""
    return _warmup(num_timesteps, beta_start, beta_end, 0.5)


def cosine(num_timesteps: int, offset: float = 0.008, beta_max: float = 0.999) -> Betas:
    """alpha_bar falling as a squared cosine (IDDPM Eq. 17), each beta at most `beta_max`."""
    _check_length(num_timesteps)
    time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((time + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], beta_max)


def array(betas: Sequence[float]) -> Betas:
    """The given numbers, for a schedule that has no name."""
    return np.asarray(betas, dtype=np.float64)


def _check_betas(betas: np.ndarray) -> None:
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be one non-empty row of numbers, got shape {betas.shape}.")
    wrong = ~((betas > 0.0) & (betas <= 1.0))  # also catches NaN
    wrong[:-1] |= betas[:-1] == 1.0
    if wrong.any():
        t = int(np.argmax(wrong))
        raise ValueError(
            f"beta[{t}] = {betas[t]} is not allowed: every beta must lie in (0, 1), and only the "
            f"last, beta[{betas.size - 1}], may be 1 (the chain then ends in pure noise)."
        )


def _tables(betas: np.ndarray, told: np.ndarray) -> Schedule:
    """Derives every table in float64 and casts once: float32 would lose up to 1.7e-4 relative."""
    alpha = 1.0 - betas
    alpha_bar = np.cumprod(alpha)
    alpha_bar_prev = np.concatenate([[1.0], alpha_bar[:-1]])
    # 1 - alpha_bar by the recurrence of the variances, which never subtracts near-equal numbers.
    one_minus = np.empty_like(betas)
    variance = 0.0
    for t, beta in enumerate(betas):
        variance = (1.0 - beta) * variance + beta
        one_minus[t] = variance
    one_minus_prev = np.concatenate([[0.0], one_minus[:-1]])
    posterior_variance = betas * one_minus_prev / one_minus
    # The variance is 0 at t = 0; like the original, the logarithm there repeats the one at t = 1.
    positive = np.concatenate([posterior_variance[1:2], posterior_variance[1:]])
    log_posterior = np.log(positive) if betas.size > 1 else np.log(betas)
    tables = dict(
        beta=betas,
        alpha=alpha,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        noise_variance=one_minus,
        signal=np.sqrt(alpha_bar),
        noise=np.sqrt(one_minus),
        log_beta=np.log(betas),
        large_log_variance=np.concatenate([log_posterior[:1], np.log(betas)[1:]]),
        posterior_variance=posterior_variance,
        posterior_log_variance=log_posterior,
        posterior_mean_x_0=betas * np.sqrt(alpha_bar_prev) / one_minus,
        posterior_mean_x_t=one_minus_prev * np.sqrt(alpha) / one_minus,
    )
    return Schedule(
        **{name: jnp.asarray(table, jnp.float32) for name, table in tables.items()},
        told=jnp.asarray(told, jnp.int32),
    )


def from_betas(betas: Sequence[float] | np.ndarray) -> Schedule:
    """All tables of the chain with these variances (DDPM Eqs. 2, 4, 6, 7).

    Args:
        betas: float[T], each in (0, 1); the last may be 1.

    Raises:
        ValueError: naming the first offending index and its value.
    """
    values = np.asarray(betas, dtype=np.float64)
    _check_betas(values)
    return _tables(values, np.arange(values.size))


def respace(betas: Sequence[float] | np.ndarray, keep: Sequence[int] | np.ndarray) -> Schedule:
    """The chain that visits only the timesteps `keep`, with the same marginals (IDDPM Eq. 19).

    Its variances are beta'_i = 1 - alpha_bar[keep_i] / alpha_bar[keep_{i-1}]; the network is still
    told the original timesteps, which `told` holds.

    Args:
        betas: float[T], as for `from_betas`.
        keep: int[N], strictly increasing, each in [0, T).

    Raises:
        ValueError: if `betas` or `keep` are not as described.
    """
    values = np.asarray(betas, dtype=np.float64)
    _check_betas(values)
    kept = np.asarray(keep)
    if kept.ndim != 1 or kept.size == 0 or not np.issubdtype(kept.dtype, np.integer):
        raise ValueError(f"keep must be a non-empty row of integers, got {keep!r}.")
    if kept[0] < 0 or kept[-1] >= values.size or (np.diff(kept) <= 0).any():
        raise ValueError(
            f"keep must be strictly increasing and lie in [0, {values.size}), got {kept.tolist()}."
        )
    # A product over the skipped steps instead of a ratio of alpha_bars, which may underflow.
    starts = np.concatenate([[0], kept[:-1] + 1])
    alpha = np.multiply.reduceat((1.0 - values)[: kept[-1] + 1], starts)
    return _tables(1.0 - alpha, kept)


def from_levels(levels: Levels) -> Schedule:
    """The chain that visits these levels of a path, variance-preserving or not.

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I) with sqrt(alpha_t) the ratio of the two
    signals and beta_t what the noise then lacks, so that every table of DDPM Eqs. 4 and 7 keeps its
    meaning (VDM App. A). Where all noise is new, at an end without signal, alpha_t is 0.
    """
    signal, noise = levels.signal[1:], levels.noise[1:]
    signal_prev, noise_prev = levels.signal[:-1], levels.noise[:-1]
    new = -np.expm1(2.0 * np.diff(levels.log_ratio))  # share of the variance that the step adds
    beta, ratio = noise**2 * new, signal / signal_prev
    log_posterior = np.log(np.append(levels.variance[1:2], levels.variance[1:]))
    log_posterior = log_posterior if len(signal) > 1 else np.log(beta)
    tables = dict(
        beta=beta,
        alpha=ratio**2,
        alpha_bar=signal**2,
        alpha_bar_prev=signal_prev**2,
        noise_variance=noise**2,
        signal=signal,
        noise=noise,
        log_beta=np.log(beta),
        large_log_variance=np.append(log_posterior[:1], np.log(beta)[1:]),
        posterior_variance=levels.variance,
        posterior_log_variance=log_posterior,
        posterior_mean_x_0=signal_prev * new,
        posterior_mean_x_t=ratio * (noise_prev / noise) ** 2,
        told=levels.told[1:],
    )
    if levels.d_signal is not None and levels.d_noise is not None:
        tables |= dict(d_signal=levels.d_signal[1:], d_noise=levels.d_noise[1:])
    return Schedule(**{name: jnp.asarray(table, jnp.float32) for name, table in tables.items()})


BETAS = MappingProxyType(
    {
        "linear": linear,
        "quadratic": quadratic,
        "sigmoid": sigmoid,
        "constant": constant,
        "jsd": jsd,
        "warmup10": warmup10,
        "warmup50": warmup50,
        "cosine": cosine,
        "array": array,
    }
)
