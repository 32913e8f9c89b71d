"""Figures of the forward process: images turned into noise, the schedule, and the loss' weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion import losses
from diffusion.forward import at
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.structs import Process
from diffusion.variances import VARIANCES
from experiments.figures.figure import DPI, Context, Figure, blank, grid, real_images
from experiments.figures.latents import noise
from experiments.methods.method import chain_of


def forward(context: Context) -> Figure:
    """Real images on their way into noise, x_t for several t, with the same noise."""
    chain = chain_of(context.experiment.method, "The figure forward")
    schedule = chain.process.schedule
    records = real_images(context, context.config.rows)
    x_0 = context.encode(records["image"])
    eps = noise(context, "forward", len(x_0))
    signal, deviation = (np.asarray(x, np.float64) for x in (schedule.signal, schedule.noise))
    share = deviation / (signal + deviation)
    evenly = np.linspace(share[0], share[-1], context.config.columns - 1)
    times = np.unique(np.abs(share[:, None] - evenly).argmin(axis=0))
    columns = [records["image"]]
    for t in times:
        now = at(schedule, jnp.asarray(t), x_0)
        x_t = now.signal * x_0 + now.noise * eps
        columns.append(context.decode(x_t))
    pictures = np.stack(columns, axis=1)
    caption = (
        "The forward process (DDPM Eq. 4): real images, and x_t with one noise for each row. "
        "Nothing is learned here; the model is trained to undo it."
    )
    words = ["x_0", *(f"t = {t + 1}" for t in times)]
    arrays = {"pictures": pictures, "timesteps": times}
    return Figure("The forward process", caption, arrays, grid(pictures, columns=words))


def loss_weights(process: Process) -> dict[str, np.ndarray]:
    """f64[T - 1] at t = 1 ... T - 1: what the bound weighs the squared error of each target with.

    DDPM Eq. 12 for eps, and the same term for the other parameterizations; the variance is the
    process' own where it is fixed, else fixed_small.
    """
    fixed = process.variance if not process.variance.extra_channels else VARIANCES["fixed_small"]
    t = jnp.arange(1, process.schedule.num_timesteps)
    now = at(process.schedule, t, t)
    return {
        name: np.asarray(
            losses.vlb_weight(Process(process.schedule, parameterization, fixed), now), np.float64
        )
        for name, parameterization in PARAMETERIZATIONS.items()
        if not parameterization.needs_path or process.path is not None
    }


def schedule(context: Context) -> Figure:
    """beta, alpha_bar and log-SNR of the chain, and the bound's weights on the squared errors."""
    chain = chain_of(context.experiment.method, "The figure schedule")
    tables = chain.process.schedule
    beta, alpha_bar, rest = (
        np.asarray(x, np.float64) for x in (tables.beta, tables.alpha_bar, tables.noise_variance)
    )
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha_bar) - np.log(rest)
    t, weights = np.arange(1, len(beta) + 1), loss_weights(chain.process)

    def draw(path: Path) -> None:
        canvas = blank(figsize=(12, 3.2))
        axes = canvas.subplots(1, 4)
        for axis, name, values in (
            (axes[0], "β_t", beta),
            (axes[1], "ᾱ_t", alpha_bar),
            (axes[2], "log SNR = log ᾱ_t / (1 − ᾱ_t)", log_snr),
        ):
            axis.plot(t, values, color="black", linewidth=1.2)
            axis.set_title(name, fontsize="small")
        for name, values in weights.items():
            axes[3].plot(t[1:], values, linewidth=1.2, label=name)
        axes[3].axhline(1.0, color="gray", linewidth=0.8, linestyle=":")
        axes[3].set_yscale("log")
        axes[3].set_title("weight of the squared error in the bound", fontsize="small")
        axes[3].legend(fontsize=7)
        for axis in axes:
            axis.set(xlabel="t", xlim=(0, len(beta)))
            axis.grid(alpha=0.3)
        canvas.savefig(path, dpi=DPI)

    config = context.experiment.config
    of_path = chain.process.path is not None
    chosen = f"path {config.path.name}" if of_path else f"schedule {config.schedule.name}"
    caption = (
        f"The {chosen}, T = {len(beta)}: the variance of each step, the "
        "signal that is left, and the log signal-to-noise ratio; on the right what the variational "
        "bound weighs the squared error of each target with (DDPM Eq. 12 for eps, 1 of L_simple "
        "dotted). For eps the bound's weight is largest at small t, which L_simple thus holds back."
    )
    arrays = {"beta": beta, "alpha_bar": alpha_bar, "log_snr": log_snr}
    arrays |= {f"weight_{name}": values for name, values in weights.items()}
    return Figure("Schedule and weights", caption, arrays, draw)
