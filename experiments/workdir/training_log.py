"""What a run says: lines or a progress bar for people, JSONL and TensorBoard for programs."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import absl.logging
import jax
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

from experiments.console import format_duration
from experiments.workdir.metrics_file import drop_lines_after


class Window(NamedTuple):
    """The metrics of the calls between two records, still on the device."""

    step: int
    calls: list[dict[str, jax.Array]]
    images: int
    data_seconds: float  # that the loop waited for a batch

    def read(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Means over the window, and rates where it took `seconds`; waits for the device.

        loss_q0 to loss_q3 are means over the examples whose t was drawn from that quarter of the
        chain, not weighted: where t is drawn by importance, they are of the drawn t.
        """
        calls = jax.device_get(self.calls)
        total: dict[str, Any] = {name: sum(call[name] for call in calls) for name in calls[0]}
        steps = float(total["steps"])
        result = {
            "loss": float(total["loss"]) / steps,
            "grad_norm": float(total["grad_norm"]) / steps,
            "clipped_share": float(total["clipped_share"]) / steps,
            "images_per_second": self.images / seconds,
            "data_wait_share": self.data_seconds / seconds,
            "eta_seconds": (num_steps - self.step) * seconds / steps,
        }
        sums = zip(total["quartile_loss"], total["quartile_count"], strict=True)
        return result | {f"loss_q{q}": float(s / n) for q, (s, n) in enumerate(sums) if n}


class Meter:
    """Collects what the training calls return, without waiting for it."""

    def __init__(self) -> None:
        self._reset()
        self._since = time.perf_counter()

    def _reset(self) -> None:
        self._calls: list[dict[str, jax.Array]] = []
        self._images = 0
        self._data_seconds = 0.0

    def add(self, metrics: dict[str, jax.Array], images: int) -> None:
        """Keeps the sums of one call and starts copying them to the host."""
        for leaf in metrics.values():
            leaf.copy_to_host_async()
        self._calls.append(metrics)
        self._images += images

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for a batch."""
        begin = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the rates."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def close(self, step: int) -> Window:
        """The window that ends with the calls so far; the next one begins."""
        window = Window(step, self._calls, self._images, self._data_seconds)
        self._reset()
        return window

    def lap(self) -> float:
        """Seconds since the last lap, to be taken when a window's calls have been computed."""
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        return seconds


class TrainingLog:
    """Metrics of a run, written by the main process; in the others every method does nothing.

    On a terminal a progress bar moves and lines scroll above it; elsewhere there are only lines.
    """

    def __init__(self, workdir: Path, start_step: int, num_steps: int) -> None:
        self.active = jax.process_index() == 0
        self.num_steps = num_steps
        if not self.active:
            return
        path = workdir / "metrics.jsonl"
        drop_lines_after(path, start_step)
        self._jsonl = path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=10
        )
        console = Console()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            Elapsed(),
            Remaining(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=start_step, loss=""
        )

    def __enter__(self) -> Self:
        if self.active:
            self._progress.start()
            handler = absl.logging.get_absl_handler()
            self._absl_stream = handler.python_handler.stream
            handler.python_handler.stream = sys.stderr  # the bar's proxy while it runs
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            absl.logging.get_absl_handler().python_handler.stream = self._absl_stream
            self._progress.stop()
            self._board.close()
            self._jsonl.close()

    def scalar(self, step: int, name: str, value: float) -> None:
        """One number beside the windows' metrics, in metrics.jsonl and TensorBoard."""
        if self.active:
            self._jsonl.write(json.dumps({"step": step, name: value}) + "\n")
            self._board.add_scalar(name, value, step)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self.active:
            self._progress.update(self._task, completed=step)

    def write(self, window: Window, seconds: float) -> dict[str, float]:
        """One record, to the terminal, metrics.jsonl and TensorBoard; waits for the window.

        Returns the window's metrics, in every process.
        """
        step, metrics = window.step, window.read(self.num_steps, seconds)
        if not self.active:
            return metrics
        self._jsonl.write(json.dumps({"step": step} | metrics) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        quartiles = " ".join(f"{metrics.get(f'loss_q{q}', float('nan')):.4f}" for q in range(4))
        self._progress.update(self._task, loss=f"loss {metrics['loss']:.4f}")
        self._progress.console.print(
            f"step {step:>7,}/{self.num_steps:,}  loss {metrics['loss']:.4f} [{quartiles}]  "
            f"grad {metrics['grad_norm']:.3f} ({metrics['clipped_share']:.0%} clipped)  "
            f"{metrics['images_per_second']:.0f} images/s  "
            f"data {metrics['data_wait_share']:.0%}  ETA {format_duration(metrics['eta_seconds'])}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return metrics
