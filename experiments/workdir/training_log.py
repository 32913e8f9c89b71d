"""What a run says: lines or a progress bar for people, JSONL and TensorBoard for programs."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import absl.logging
import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from experiments import console
from experiments.console import WIDTH, format_duration
from experiments.files.atomic import strict_json
from experiments.workdir.metrics_file import drop_lines_after
from experiments.workdir.sinks import open_sinks


class Window(NamedTuple):
    """The metrics of the calls between two records, still on the device."""

    step: int
    calls: list[dict[str, Any]]
    images: int
    data_seconds: float  # that the loop waited for a batch
    numbers: dict[str, Any]  # of the state at its end

    def read(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Means over the window, and rates where it took `seconds`; waits for the device.

        Of the method's summary, every ratio of sums to counts that are not 0: `name`, or name0,
        name1, ... for several.
        """
        calls, numbers = jax.device_get((self.calls, self.numbers))
        total: dict[str, Any] = jax.tree.map(lambda *values: sum(values), *calls)
        steps = float(total["steps"])
        result = {
            "loss": float(total["loss"]) / steps,
            "grad_norm": float(total["grad_norm"]) / steps,
            "clipped_share": float(total["clipped_share"]) / steps,
            "update_norm": float(total["update_norm"]) / steps,
            **{name: float(value) for name, value in numbers.items()},
            "images_per_second": self.images / seconds,
            "data_wait_share": self.data_seconds / seconds,
            "eta_seconds": (num_steps - self.step) * seconds / steps,
        }
        for name, (sums, counts) in total["summary"].items():
            if np.ndim(sums):
                found = {
                    f"{name}{i}": (s, n) for i, (s, n) in enumerate(zip(sums, counts, strict=True))
                }
            else:
                found = {name: (sums, counts)}
            result |= {key: float(s / n) for key, (s, n) in found.items() if n}
        return result

    def columns(self, metrics: dict[str, float]) -> str:
        """The method's summary for the terminal: `[a b c]` for several of a name, else `name a`.

        A dash stands for a mean of no examples.
        """
        text = ""
        for name, (sums, _) in self.calls[0]["summary"].items():
            if np.ndim(sums):
                values = [metrics.get(f"{name}{i}") for i in range(len(sums))]
                text += f" [{' '.join(map(_shown, values))}]"
            else:
                text += f"  {name} {_shown(metrics.get(name), 4)}"
        return text


def _shown(value: float | None, digits: int = 3) -> str:
    """A mean, or a dash where there was nothing to take it of."""
    return "-" if value is None else f"{value:.{digits}f}"


class Meter:
    """Collects what the training calls return, without waiting for it."""

    def __init__(self) -> None:
        self._reset()
        self._since = time.perf_counter()

    def _reset(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._images = 0
        self._data_seconds = 0.0

    def add(self, metrics: dict[str, Any], images: int) -> None:
        """Keeps the sums of one call and starts copying them to the host."""
        for leaf in jax.tree.leaves(metrics):
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

    def close(self, step: int, numbers: dict[str, Any]) -> Window:
        """The window that ends with the calls so far; the next one begins."""
        window = Window(step, self._calls, self._images, self._data_seconds, numbers)
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

    def __init__(self, workdir: Path, start_step: int, config: ConfigDict, num_images: int) -> None:
        """Args:
        workdir: of the run.
        start_step: what an earlier training logged beyond it is removed.
        config: of the run.
        num_images: that there are to train on: an epoch.
        """
        self.active = jax.process_index() == 0
        self.num_steps = config.train.num_steps
        self._epochs_per_step = config.train.batch_size / num_images
        if not self.active:
            return
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        drop_lines_after(path, start_step)
        self._jsonl = path.open("a", buffering=1)
        self._sinks = open_sinks(workdir, config.train.log_to, start_step + 1)
        if not start_step:
            self._sinks.text("config", config.to_yaml())
        screen = Console()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            Elapsed(),
            TextColumn("ETA {task.fields[eta]}"),
            console=screen,
            disable=not screen.is_terminal,
            expand=True,
        )
        self._task = self._progress.add_task(
            "training", total=self.num_steps, completed=start_step, loss="", eta="-:--"
        )

    def __enter__(self) -> Self:
        if self.active:
            self._alone = console.BAR.acquire(blocking=False)
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
            if self._alone:
                console.BAR.release()
            self._sinks.close()
            self._jsonl.close()

    def show(self, step: int, found: Mapping[str, Any]) -> None:
        """Numbers and pictures of the model at a step, beside the windows' metrics."""
        if not self.active:
            return
        pictures = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        self._record(step, {k: v for k, v in found.items() if k not in pictures}, "eval")
        for name, picture in pictures.items():
            self._sinks.image(step, f"eval/{name}", picture)

    def _record(self, step: int, values: Mapping[str, float], group: str) -> None:
        if values:
            with console.told_when_slow(f"the log to be written to {self._workdir}"):
                self._jsonl.write(strict_json({"step": step} | dict(values)) + "\n")
                self._sinks.scalars(step, {f"{group}/{name}": v for name, v in values.items()})

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self.active:
            self._progress.update(self._task, completed=step)

    def write(self, window: Window, seconds: float) -> dict[str, float]:
        """One record, to the terminal, metrics.jsonl and TensorBoard; waits for the window.

        Returns the window's metrics, in every process.
        """
        step = window.step
        metrics = window.read(self.num_steps, seconds) | {"epoch": step * self._epochs_per_step}
        if not self.active:
            return metrics
        self._record(step, metrics, "train")
        eta = format_duration(metrics["eta_seconds"])
        self._progress.update(self._task, loss=f"loss {metrics['loss']:.4f}", eta=eta)
        self._progress.console.print(
            _line(window, metrics, "" if self._progress.live.is_started else eta),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return metrics


def _line(window: Window, metrics: dict[str, float], eta: str) -> str:
    """The metrics that fit one line of WIDTH columns, the most important first to find room.

    Args:
        eta: where no bar shows it, else "".
    """
    clipped, waited = metrics["clipped_share"], metrics["data_wait_share"]
    columns = [  # in the order of the line; the number says which finds room first
        (0, f"step {window.step:>7,}  loss {metrics['loss']:.4f}"),
        (2, window.columns(metrics)),
        (4, f"  grad {metrics['grad_norm']:.3f}"),
        (5, f" ({clipped:.0%} clipped)" if clipped >= 0.005 else ""),
        (3, f"  {metrics['images_per_second']:.0f} images/s"),
        (6, f"  data {waited:.0%}" if waited >= 0.05 else ""),
        (1, f"  ETA {eta}" if eta else ""),
    ]
    room, chosen = WIDTH, set()
    for rank, text in sorted(columns):
        if len(text) <= room:
            room -= len(text)
            chosen.add(rank)
    return "".join(text for rank, text in columns if rank in chosen)
