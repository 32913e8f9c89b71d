"""The pictures of an evaluation."""

from pathlib import Path
from typing import Any

import numpy as np


def _figure(**options: Any) -> Any:
    """An empty figure, of whatever backend: pyplot would set the caller's, a notebook's say."""
    from matplotlib.figure import Figure  # trainings do without its second of import

    return Figure(**options, layout="constrained")


def rate_distortion(path: Path, rate: np.ndarray, rmse: np.ndarray, title: str) -> None:
    """DDPM Figure 5: distortion and rate against reverse time, and distortion against rate.

    Args:
        path: of the PNG.
        rate: f64[T], bits/dim sent when the receiver holds x_t.
        rmse: f64[T], of the estimate of x_0 from x_t, on [0, 255].
    """
    reverse_time = len(rate) - np.arange(len(rate))
    figure = _figure(figsize=(11, 3.2))
    axes = figure.subplots(1, 3)
    for axis, x, y, names in (
        (axes[0], reverse_time, rmse, ("reverse time T − t", "distortion (RMSE, 0 to 255)")),
        (axes[1], reverse_time, rate, ("reverse time T − t", "rate (bits/dim)")),
        (axes[2], rate, rmse, ("rate (bits/dim)", "distortion (RMSE, 0 to 255)")),
    ):
        axis.plot(x, y, color="black", linewidth=1.2)
        axis.set(xlabel=names[0], ylabel=names[1], ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def along_the_chain(path: Path, reverse_time: np.ndarray, series: dict[str, np.ndarray]) -> None:
    """DDPM Figure 10: sample metrics of the estimate of x_0 against reverse time.

    Args:
        series: name -> f64[K], one panel each.
    """
    figure = _figure(figsize=(4 * len(series), 3.2))
    axes = figure.subplots(1, len(series), squeeze=False)[0]
    for axis, (name, values) in zip(axes, series.items(), strict=True):
        axis.plot(reverse_time, values, marker="o", markersize=3, color="black", linewidth=1.2)
        axis.set(xlabel="reverse time T − t", xlim=(0, None))
        axis.set_title(name, fontsize="small")  # with an extractor's name too long for the side
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
