"""From the network's output to p(x_{t-1} | x_t). The only place that clips."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.forward import Time, at, q_posterior
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.structs import Path, Point, Prediction, Process, Schedule, Variance

X = Float[Array, "*x"]
Threshold = Callable[[jax.Array], jax.Array]
Denoise = Callable[..., Prediction]  # (params, x_t, t, **inputs) -> Prediction


def split_output(
    variance: Variance, output: Float[Array, "..."], x_t: X
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None]:
    """The network's output as (mean part, variance part or None), split on the last axis.

    Raises:
        ValueError: if the output has not the shape that `variance` needs.
    """
    channels = x_t.shape[-1]
    expected = (*x_t.shape[:-1], channels * (1 + variance.extra_channels))
    if output.shape != expected:
        raise ValueError(
            f"the network returned shape {output.shape} for x_t of shape {x_t.shape}, but this "
            f"variance needs {expected}: {1 + variance.extra_channels} output(s) per data channel."
        )
    if variance.extra_channels == 0:
        return output, None
    return output[..., :channels], output[..., channels:]


def ask(
    apply: Callable[..., jax.Array],
    process: Process,
    params: Any,
    now: Schedule | Point,
    x_t: X,
    **inputs: Any,
) -> Float[Array, "..."]:
    """The network's output at x_t, which it sees scaled and with what it is told of `now`.

    Args:
        apply: (params, x_t, told, **inputs) -> network output.
        now: the row of a chain at t, or a point of a path, fitted to x_t.
    """
    scale_in = process.parameterization.scale_in
    told = jnp.broadcast_to(now.told.ravel(), x_t.shape[:1])
    return apply(params, scale_in(now) * x_t if scale_in else x_t, told, **inputs)


def predict(
    process: Process,
    output: Float[Array, "..."],
    x_t: X,
    now: Schedule,
    *,
    threshold: Threshold,
) -> Prediction:
    """Reads the network's output as p(x_{t-1} | x_t) = N(mean, exp(log_variance)) (DDPM Eq. 1).

    Args:
        process: the chain and how the output is read on it.
        output: f32[B, ..., C] or f32[B, ..., 2C] where the variance is learned.
        x_t: f32[B, ..., C].
        now: the tables at t, to go with x_t (`forward.at`).
        threshold: one of THRESHOLDS, of x_0 before the mean is formed. A predicted mean (`mu`) is
            never clipped: there only the reported x_0 is, as in the original.
    """
    parameterization, variance = process.parameterization, process.variance
    value, extra = split_output(variance, output, x_t)
    x_0 = threshold(parameterization.decode(now, value, x_t))
    eps = (x_t - now.signal * x_0) / now.noise
    mean = value if parameterization.predicts_mean else q_posterior(now, x_0, x_t).mean
    return Prediction(x_0, eps, mean, variance.log_variance(now, extra, x_t))


def _signal_at_end(path: Path) -> float:
    with jax.ensure_compile_time_eval():
        return float(path.signal(jnp.asarray(path.end, jnp.float32)))


def check_process(process: Process) -> None:
    """Refuses a parameterization that divides by alpha_bar_t where it reaches 0, or needs a path.

    Raises:
        ValueError: naming the timestep and what to choose instead.
    """
    if process.parameterization.needs_path and process.path is None:
        others = [name for name, each in PARAMETERIZATIONS.items() if not each.needs_path]
        raise ValueError(
            "this parameterization is of the derivatives along a path in continuous time, which a "
            f"chain does not have. Choose {' or '.join(others)}, or a path."
        )
    if process.parameterization.predicts_mean and process.path is not None:
        others = [name for name, each in PARAMETERIZATIONS.items() if not each.predicts_mean]
        raise ValueError(
            "this parameterization is of single steps of a chain, and continuous time has none. "
            f"Choose {' or '.join(others)}."
        )
    if process.parameterization.keeps_variance and process.path is not None:
        length = np.hypot(process.schedule.signal, process.schedule.noise)
        if abs(length - 1.0).max() > 1e-4:
            raise ValueError(
                "this parameterization (v) is of paths that keep the variance, signal^2 + noise^2 "
                "= 1. Choose edm(sigma_data=1), which is -v there and takes all of them, or "
                "velocity, or another path."
            )
    needs_signal = process.parameterization.needs_signal
    if needs_signal and process.path is not None and not _signal_at_end(process.path) > 0.0:
        others = [
            name
            for name, each in PARAMETERIZATIONS.items()
            if not (each.needs_signal or each.predicts_mean)
        ]
        raise ValueError(
            "this parameterization recovers x_0 by dividing by the signal, of which this path "
            f"has none at its end. Choose {' or '.join(others)}, or another path."
        )
    alpha_bar = np.asarray(process.schedule.alpha_bar)
    if needs_signal and not (alpha_bar > 0.0).all():
        t = int(np.argmin(alpha_bar > 0.0))
        others = [name for name, each in PARAMETERIZATIONS.items() if not each.needs_signal]
        raise ValueError(
            f"this parameterization recovers x_0 by dividing by alpha_bar, which is 0 at t = {t}: "
            f"no signal is left there. Choose {' or '.join(others)}, or a schedule whose last beta "
            "is below 1, or another path."
        )


def make_denoise(
    apply: Callable[..., jax.Array], process: Process, *, threshold: Threshold
) -> Denoise:
    """Joins a network with its meaning: denoise(params, x_t, t, **inputs) -> Prediction.

    Args:
        apply: (params, x_t, told, **inputs) -> network output; `inputs` (class labels, say)
            pass through untouched.
        process: of concrete tables, not traced ones.
        threshold: as for `predict`.
    """
    check_process(process)

    def denoise(params: Any, x_t: X, t: Time, **inputs: Any) -> Prediction:
        now = at(process.schedule, t, x_t)
        output = ask(apply, process, params, now, x_t, **inputs)
        return predict(process, output, x_t, now, threshold=threshold)

    return denoise
