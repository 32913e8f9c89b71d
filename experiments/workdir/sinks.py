"""Where numbers, pictures and texts of a run go beside metrics.jsonl, for people to look at.

A sink is a few functions; one more is a class here and a line of SINKS. Names are paths: what the
training measures of itself lies under train/, what is measured of its model under eval/.
"""

import errno
import functools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from experiments.files.atomic import digest


class Sink(Protocol):
    """Takes what a run has to show."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8[H, W, C] with 1 or 3 channels."""

    def text(self, name: str, text: str) -> None:
        """A text, such as the config."""

    def close(self) -> None:
        """Writes what is still to be written."""


class TensorBoard:
    """Event files in `workdir`/tensorboard, which `tensorboard --logdir` shows.

    A thread of tensorboardX writes them. An error would end that thread alone, and the program
    would wait for it for ever; so it is kept, and raised where something is shown next.

    Raises:
        OSError: from `scalars`, `image`, `text` and `close`, if the files could not be written.
    """

    def __init__(self, workdir: Path, purge_step: int | None) -> None:
        import tensorboardX  # takes PyTorch with it where that is installed

        self._writer = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=purge_step,
            flush_secs=10,
            filename_suffix=f".{time.time_ns()}",  # or the next within a second overwrites it
        )
        self._error: OSError | None = None
        self._events = self._writer.file_writer.event_writer
        self._thread = self._events._worker
        files = self._events._ev_writer
        for name in ("write_event", "flush"):
            setattr(files, name, functools.partial(self._kept, files, name))

    def _kept(self, files: Any, name: str, *arguments: Any) -> Any:
        """Calls a method of the files; an error is kept and not raised."""
        try:
            return getattr(type(files), name)(files, *arguments)
        except OSError as error:
            self._error = self._error or error
            return None

    def _check(self) -> None:
        if self._error is None and self._thread is not None and not self._thread.is_alive():
            self._error = OSError(errno.EIO, "the files of TensorBoard could not be begun")
        if self._error is not None:
            raise self._error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._check()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        self._check()
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        self._check()
        self._writer.add_text(name, "    " + text.replace("\n", "\n    "))  # Markdown's code

    def close(self) -> None:
        if self._thread is not None and not self._thread.is_alive():
            self._events._event_queue.cancel_join_thread()  # or the end of the program waits for it
        try:
            self._writer.close()
        except OSError as error:  # which it would meet again at the end of the program
            self._events.close = lambda: None
            self._error = self._error or error
        self._thread = None
        self._check()


class WandB:
    """Weights & Biases, in `workdir`/wandb: offline unless $WANDB_MODE says otherwise.

    Raises:
        ImportError: without the extra `wandb`.
    """

    def __init__(self, workdir: Path, purge_step: int | None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "config.train.log_to asks for wandb, which is not installed: pip install -e "
                "'.[wandb]', or leave it out."
            ) from error
        self._wandb, name = wandb, workdir.absolute().name
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project="ddpm-jax",
            name=name,
            dir=str(workdir),
            mode=mode,
            id=digest(str(workdir.absolute())),  # evaluations and continuations are of one run
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        for pattern in ("train/*", "eval/*"):  # a continued run may repeat steps
            self._run.define_metric(pattern, step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(picture.squeeze()), "step": step})

    def text(self, name: str, text: str) -> None:
        self._run.config.update({name: text}, allow_val_change=True)

    def close(self) -> None:
        self._run.finish()


SINKS: MappingProxyType[str, Any] = MappingProxyType({"tensorboard": TensorBoard, "wandb": WandB})


class Several:
    """Several sinks as one; none of them where there are none."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.scalars(step, values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        for sink in self._sinks:
            sink.image(step, name, picture)

    def text(self, name: str, text: str) -> None:
        for sink in self._sinks:
            sink.text(name, text)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_sinks(workdir: Path, names: str, purge_step: int | None = None) -> Several:
    """The sinks that `names` lists, separated by commas; to be closed.

    Args:
        workdir: of the run.
        names: of SINKS; "" is none.
        purge_step: what was shown of this step and later ones is of a training that is repeated.
    """
    words = [name.strip() for name in names.split(",") if name.strip()]
    return Several([SINKS[name](workdir, purge_step) for name in words])


def show(workdir: Path, config: ConfigDict, step: int, values: Mapping[str, Any]) -> None:
    """Shows numbers and pictures, uint8[H, W, C], of a step in the sinks of a run's config."""
    sinks = open_sinks(workdir, config.train.log_to)
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            sinks.image(step, name, value)
        elif value is not None:
            sinks.scalars(step, {name: value})
    sinks.close()
