"""Training objectives, the weightings of the simple one, and how t is drawn.

What the program supplies is positional-only; what comes after the slash is a choice that a config
makes. Losses are per example, averaged over dimensions.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion import thresholds
from diffusion.forward import at, q_sample, snr
from diffusion.likelihood import Decoder, mean_per_example, tanh_decoder, to_bits_per_dim, vlb_term
from diffusion.reverse import check_signal, predict, split_output
from diffusion.structs import Process, TimestepSampler
from diffusion.variances import VARIANCES

X = Float[Array, "b *x"]
PerExample = Float[Array, " b"]
T = Int[Array, " b"]
FIXED, LEARNED = (
    " or ".join(name for name, each in VARIANCES.items() if bool(each.extra_channels) == learned)
    for learned in (False, True)
)
ALLOWED = (
    f"Allowed: simple with {FIXED}; vlb with any variance; hybrid with {LEARNED}; weighting `vlb` "
    "with a fixed variance."
)


class Noised(NamedTuple):
    """One training example after the forward process."""

    x_0: X
    eps: X
    x_t: X
    t: T


# --- Weightings of the simple loss: functions of (process, t), f32[B] ---


def _output_to_x_0(process: Process, t: T) -> PerExample:
    """|d x_0 / d output|: how far x_0 moves when the network's output moves by 1."""
    zero, one = jnp.zeros(t.shape), jnp.ones(t.shape)
    now, decode = at(process.schedule, t, t), process.parameterization.decode
    return jnp.abs(decode(now, one, zero) - decode(now, zero, zero))


def uniform_weight(process: Process, t: T, /) -> PerExample:
    """1, the paper's L_simple (DDPM Eq. 14)."""
    return jnp.ones(t.shape)


def vlb_weight(process: Process, t: T, /) -> PerExample:
    """The weight that the bound gives the squared error of the output.

    (d mean / d output)^2 / (2 sigma_t^2), which for eps is
    beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) (DDPM Eq. 12).

    Raises:
        ValueError: if the variance is learned, so that no sigma_t exists before the network runs.
    """
    if process.variance.extra_channels:
        raise ValueError(f"weighting `vlb` needs a fixed variance to weight by. {ALLOWED}")
    now = at(process.schedule, t, t)
    slope = now.posterior_mean_x_0 * _output_to_x_0(process, t)
    log_variance = process.variance.log_variance(now, None, t.astype(jnp.float32))
    return jnp.square(slope) * jnp.exp(-log_variance) / 2.0


def min_snr_weight(process: Process, t: T, /, gamma: float = 5.0) -> PerExample:
    """min(SNR, gamma) on the squared error of x_0, carried over to the output (minSNR Eq. 6)."""
    ratio = jnp.minimum(snr(process.schedule, t), gamma)
    return ratio * jnp.square(_output_to_x_0(process, t))


# --- Losses: functions of (process, output, noised, decoder), f32[B]; decoder is L_0's ---


def _squared_error(process: Process, value: X, noised: Noised) -> PerExample:
    x_0, eps, x_t, t = noised
    target = process.parameterization.target(at(process.schedule, t, x_t), x_0, eps, x_t)
    return mean_per_example(jnp.square(target - value))


def simple(
    process: Process,
    output: Float[Array, "b ..."],
    noised: Noised,
    decoder: Decoder = tanh_decoder,
    /,
    weighting: Callable[[Process, T], PerExample] = uniform_weight,
) -> PerExample:
    """Weighted mean squared error between the network's output and its target (DDPM Eq. 14).

    It has the same form at every t, so that `decoder` plays no part.

    Raises:
        ValueError: if the variance is learned: this loss would give it no gradient.
    """
    if process.variance.extra_channels:
        raise ValueError(f"loss `simple` gives a learned variance no gradient. {ALLOWED}")
    value, _ = split_output(process.variance, output, noised.x_t)
    return weighting(process, noised.t) * _squared_error(process, value, noised)


def vlb(
    process: Process,
    output: Float[Array, "b ..."],
    noised: Noised,
    decoder: Decoder = tanh_decoder,
    /,
    scale: float = 1.0,
) -> PerExample:
    """scale * T * (the bound's term at t), in bits per dimension (DDPM Eq. 5).

    With t uniform and scale 1 its mean is the whole bound L - L_T. The original optimises the term
    itself, which is scale = 1 / T. The factor matters to gradient clipping, and to Adam where the
    root of the second moment is not large beside its eps.
    """
    x_0, _, x_t, t = noised
    prediction = predict(process, output, x_t, t, threshold=thresholds.none)
    term = to_bits_per_dim(vlb_term(process.schedule, prediction, x_0, x_t, t, decoder=decoder))
    return scale * process.schedule.num_timesteps * term


def hybrid(
    process: Process,
    output: Float[Array, "b ..."],
    noised: Noised,
    decoder: Decoder = tanh_decoder,
    /,
    vlb_coefficient: float = 1e-3,
    weighting: Callable[[Process, T], PerExample] = uniform_weight,
) -> PerExample:
    """L_simple + vlb_coefficient * L_vlb, the mean held still in the second part (IDDPM Eq. 16).

    Raises:
        ValueError: if the variance is fixed: the second part would then have no gradient at all.
    """
    if not process.variance.extra_channels:
        raise ValueError(f"loss `hybrid` trains a learned variance and has none. {ALLOWED}")
    value, _ = split_output(process.variance, output, noised.x_t)
    held = output.at[..., : value.shape[-1]].set(jax.lax.stop_gradient(value))
    bound = vlb_coefficient * vlb(process, held, noised, decoder)
    return weighting(process, noised.t) * _squared_error(process, value, noised) + bound


def make_loss_fn(
    apply: Callable[..., jax.Array],
    process: Process,
    loss: Callable[..., PerExample],
    decoder: Decoder = tanh_decoder,
) -> Callable[..., PerExample]:
    """loss_fn(params, x_0, t, eps, **inputs) -> f32[B], one network evaluation (DDPM Alg. 1).

    Args:
        apply: (params, x_t, model_t, **inputs) -> network output.
        process: concrete tables, not traced ones.
        loss: one of LOSSES, its options bound.
        decoder: of L_0, for the data's number of levels.
    """
    check_signal(process)

    def loss_fn(params: Any, x_0: X, t: T, eps: X, **inputs: Any) -> PerExample:
        x_t = q_sample(process.schedule, x_0, t, eps)
        output = apply(params, x_t, process.schedule.model_t[t], **inputs)
        return loss(process, output, Noised(x_0, eps, x_t, t), decoder)

    return loss_fn


# --- Drawing t ---


def uniform(num_timesteps: int, /) -> TimestepSampler:
    """t uniform on 0 .. T - 1 (DDPM Alg. 1)."""

    def sample(state: tuple[()], keys: Key[Array, " b"]) -> tuple[T, PerExample]:
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)
        return t, jnp.ones(t.shape)

    return TimestepSampler(lambda: (), sample, lambda state, t, losses: state)


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


def loss_second_moment(
    num_timesteps: int, /, history: int = 10, uniform_share: float = 1e-3
) -> TimestepSampler:
    """t drawn in proportion to sqrt(E[L_t^2]) over the last `history` losses (IDDPM Eq. 18).

    Uniform until every timestep has a full history; `uniform_share` of the draws stay uniform so
    that no timestep is forgotten. The weights 1 / (T p_t) keep the loss's mean.

    Raises:
        ValueError: unless history >= 1 and 0 < uniform_share <= 1.
    """
    if history < 1 or not 0.0 < uniform_share <= 1.0:
        raise ValueError(
            f"got history = {history} and uniform_share = {uniform_share}; "
            "history must be at least 1 and uniform_share in (0, 1]."
        )

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((num_timesteps, history)), jnp.zeros(num_timesteps, jnp.int32))

    def probabilities(state: LossHistory) -> jax.Array:
        root = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        share = root / jnp.maximum(jnp.sum(root), jnp.finfo(root.dtype).tiny)
        mixed = (1.0 - uniform_share) * share + uniform_share / num_timesteps
        full = jnp.all(state.seen >= history) & (jnp.sum(root) > 0.0)
        return jnp.where(full, mixed, 1.0 / num_timesteps)

    def sample(state: LossHistory, keys: Key[Array, " b"]) -> tuple[T, PerExample]:
        total, locate = whole_parts(probabilities(state))
        t, p = locate(jax.vmap(lambda key: jax.random.randint(key, (), 0, total, jnp.uint32))(keys))
        return t, 1.0 / (num_timesteps * p)

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

    return TimestepSampler(init, sample, update)


LOSSES = MappingProxyType({"simple": simple, "vlb": vlb, "hybrid": hybrid})
WEIGHTINGS = MappingProxyType(
    {"uniform": uniform_weight, "vlb": vlb_weight, "min_snr": min_snr_weight}
)
TIMESTEP_SAMPLERS = MappingProxyType({"uniform": uniform, "loss_second_moment": loss_second_moment})
