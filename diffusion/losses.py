"""Training objectives, and the weightings of the simple one.

What the program supplies is positional-only; what comes after the slash is a choice that a config
makes. Losses are per example, averaged over dimensions.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion import paths, thresholds
from diffusion.forward import at, fit, snr
from diffusion.likelihood import Decoder, mean_per_example, tanh_decoder, to_bits_per_dim, vlb_term
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.reverse import ask, check_process, predict, split_output
from diffusion.structs import Parameterization, Point, Process, Schedule
from diffusion.variances import VARIANCES

X = Float[Array, "b *x"]
PerExample = Float[Array, " b"]
T = Int[Array, " b"]
Now = Schedule | Point
FIXED, LEARNED = (
    " or ".join(name for name, each in VARIANCES.items() if bool(each.extra_channels) == learned)
    for learned in (False, True)
)
ALLOWED = (
    f"Allowed: simple with {FIXED}; vlb with any variance; hybrid with {LEARNED}; weighting `vlb` "
    "with a fixed variance."
)


class Noised(NamedTuple):
    """Training examples after the forward process, x_t = signal x_0 + noise eps."""

    x_0: X
    eps: X
    x_t: X
    now: Now  # where each x_t is, of shape [B]


# --- Weightings of the simple loss: functions of (process, now), of its shape [B] ---


def _output_to_x_0(process: Process, now: Now) -> jax.Array:
    """|d x_0 / d output|: how far x_0 moves when the network's output moves by 1."""
    zero, one = jnp.zeros(now.signal.shape), jnp.ones(now.signal.shape)
    decode = process.parameterization.decode
    return jnp.abs(decode(now, one, zero) - decode(now, zero, zero))


def uniform_weight(process: Process, now: Now, /) -> jax.Array:
    """1, the paper's L_simple (DDPM Eq. 14)."""
    return jnp.ones(now.signal.shape)


def vlb_weight(process: Process, now: Now, /) -> jax.Array:
    """The weight that the bound gives the squared error of the output.

    (d mean / d output)^2 / (2 sigma_t^2), which for eps is
    beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) (DDPM Eq. 12). On a path its limit per unit
    of u, -1/2 (d SNR / du) (d x_0 / d output)^2 (VDM Eq. 15), so that with u uniform the mean loss
    times the path's length is the bound's integral over u in nats per dimension.

    Raises:
        ValueError: if the variance is learned, so that no sigma_t exists before the network runs.
    """
    if isinstance(now, Point):
        fall = now.noise * now.d_signal - now.signal * now.d_noise  # of signal / noise, * noise^2
        slope = -now.signal * fall / now.noise**3
        return slope * jnp.square(_output_to_x_0(process, now))
    if process.variance.extra_channels:
        raise ValueError(f"weighting `vlb` needs a fixed variance to weight by. {ALLOWED}")
    slope = now.posterior_mean_x_0 * _output_to_x_0(process, now)
    log_variance = process.variance.log_variance(now, None, slope)
    return jnp.square(slope) * jnp.exp(-log_variance) / 2.0


def min_snr_weight(process: Process, now: Now, /, gamma: float = 5.0) -> jax.Array:
    """min(SNR, gamma) on the squared error of x_0, carried over to the output (minSNR Eq. 6)."""
    return jnp.minimum(snr(now), gamma) * jnp.square(_output_to_x_0(process, now))


# --- Losses: functions of (process, output, noised, decoder), f32[B]; decoder is L_0's ---


def _weighed_error(
    process: Process,
    value: X,
    noised: Noised,
    weighting: Callable[[Process, Now], jax.Array],
    space: Parameterization | None,
) -> PerExample:
    """weight times the mean squared error of the output, or of what `space` makes of it.

    Of x_0 wrong by d, eps is wrong by -signal d / noise, and every target is linear in both.
    """
    x_0, eps, x_t, _ = noised
    now = fit(noised.now, x_t)
    if space is None:
        error = process.parameterization.target(now, x_0, eps, x_t) - value
    else:
        if space.predicts_mean and isinstance(now, Point):
            others = [name for name, each in SPACES.items() if each and not each.predicts_mean]
            raise ValueError(
                "the space `mu` is of single steps of a chain, and continuous time has none. "
                f"Choose output or {' or '.join(others)}."
            )
        off = process.parameterization.decode(now, value, x_t) - x_0
        error = space.target(now, off, -now.signal / now.noise * off, jnp.zeros_like(off))
    return weighting(process, noised.now) * mean_per_example(jnp.square(error))


def _row_of_chain(now: Now, loss: str) -> Schedule:
    if not isinstance(now, Schedule):
        raise ValueError(
            f"loss `{loss}` is of the bound of a chain's steps, and continuous time has none. "
            "Choose `simple`, whose weighting `vlb` is that bound in continuous time, or a chain."
        )
    return now


def simple(
    process: Process,
    output: Float[Array, "b ..."],
    noised: Noised,
    decoder: Decoder = tanh_decoder,
    /,
    weighting: Callable[[Process, Now], jax.Array] = uniform_weight,
    space: Parameterization | None = None,
) -> PerExample:
    """Weighted mean squared error between the network's output and its target (DDPM Eq. 14).

    It has the same form at every t, so that `decoder` plays no part.

    Args:
        space: what is compared, as the output and the target stand for it: of a network that
            predicts x_0, say, v. None is what the network predicts.

    Raises:
        ValueError: if the variance is learned: this loss would give it no gradient.
    """
    if process.variance.extra_channels:
        raise ValueError(f"loss `simple` gives a learned variance no gradient. {ALLOWED}")
    value, _ = split_output(process.variance, output, noised.x_t)
    return _weighed_error(process, value, noised, weighting, space)


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

    Raises:
        ValueError: for a point of a path, between which there are no steps.
    """
    x_0, _, x_t, now = noised
    now = fit(_row_of_chain(now, "vlb"), x_t)
    prediction = predict(process, output, x_t, now, threshold=thresholds.none)
    term = to_bits_per_dim(vlb_term(now, prediction, x_0, x_t, decoder=decoder))
    return scale * process.schedule.num_timesteps * term


def hybrid(
    process: Process,
    output: Float[Array, "b ..."],
    noised: Noised,
    decoder: Decoder = tanh_decoder,
    /,
    vlb_coefficient: float = 1e-3,
    weighting: Callable[[Process, Now], jax.Array] = uniform_weight,
    space: Parameterization | None = None,
) -> PerExample:
    """L_simple + vlb_coefficient * L_vlb, the mean held still in the second part (IDDPM Eq. 16).

    Args:
        weighting, space: of L_simple.

    Raises:
        ValueError: if the variance is fixed: the second part would then have no gradient at all;
            and for a point of a path.
    """
    _row_of_chain(noised.now, "hybrid")
    if not process.variance.extra_channels:
        raise ValueError(f"loss `hybrid` trains a learned variance and has none. {ALLOWED}")
    value, _ = split_output(process.variance, output, noised.x_t)
    held = output.at[..., : value.shape[-1]].set(jax.lax.stop_gradient(value))
    bound = vlb_coefficient * vlb(process, held, noised, decoder)
    return _weighed_error(process, value, noised, weighting, space) + bound


def make_loss_fn(
    apply: Callable[..., jax.Array],
    process: Process,
    loss: Callable[..., PerExample],
    decoder: Decoder = tanh_decoder,
) -> Callable[..., PerExample]:
    """loss_fn(params, x_0, t, eps, **inputs) -> f32[B], one network evaluation (DDPM Alg. 1).

    t is i32[B], timesteps of a chain, or f32[B], the u of a path.

    Args:
        apply: (params, x_t, told, **inputs) -> network output.
        process: concrete tables, not traced ones.
        loss: one of LOSSES, its options bound.
        decoder: of L_0, for the data's number of levels.
    """
    check_process(process)

    def loss_fn(params: Any, x_0: X, t: T | PerExample, eps: X, **inputs: Any) -> PerExample:
        now = paths.at(process.path, t) if process.path else at(process.schedule, t, t)
        here = fit(now, x_0)
        x_t = here.signal * x_0 + here.noise * eps
        output = ask(apply, process, params, here, x_t, **inputs)
        return loss(process, output, Noised(x_0, eps, x_t, now), decoder)

    return loss_fn


# What the squared error is of; None is the output itself.
SPACES: MappingProxyType[str, Parameterization | None] = MappingProxyType(
    {"output": None, **PARAMETERIZATIONS}
)
LOSSES = MappingProxyType({"simple": simple, "vlb": vlb, "hybrid": hybrid})
WEIGHTINGS = MappingProxyType(
    {"uniform": uniform_weight, "vlb": vlb_weight, "min_snr": min_snr_weight}
)
