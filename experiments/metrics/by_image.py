"""Numbers of every image of a split, batch by batch, resumed from the batches that are done."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import console, devices
from experiments.data.dataset import Source, read_images
from experiments.metrics.metric import Context
from experiments.metrics.parts import Parts


def padded_batches(
    source: Source, num_images: int, batch_size: int
) -> Iterator[tuple[int, int, Callable[[], dict[str, np.ndarray]]]]:
    """(first index, how many count, read): the last batch repeats its last image to be full."""
    for first in range(0, num_images, batch_size):
        stop = min(first + batch_size, num_images)

        def read(first: int = first, stop: int = stop) -> dict[str, np.ndarray]:
            batch = read_images(source, first, stop)
            missing = batch_size - (stop - first)
            return {k: np.concatenate([v, v[-1:].repeat(missing, 0)]) for k, v in batch.items()}

        yield first, stop - first, read


def compiled(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    """(params, batch, indices i32[B]) -> arrays [B, ...], B over the devices."""
    everywhere, by_image = devices.replicated(context.mesh), devices.sharded(context.mesh)
    found: Callable[..., Any] = devices.jit(
        function,
        precision=devices.REPORTED,
        in_shardings=(everywhere, by_image, by_image),
        out_shardings=everywhere,
    )
    return found


def measure_images(
    context: Context,
    function: Callable[..., Any],
    columns: Sequence[str],
    folder: Path,
    what: str,
) -> list[np.ndarray]:
    """What a compiled function gives of the images, [N, ...] each; done batches are in `folder`.

    Args:
        function: (params, batch, indices i32[B]) -> an array [B, ...] a column.
        columns: names of what it gives.
        what: for the progress bar.
    """
    batch_size = devices.round_up(context.experiment.config.evaluate.batch_size, context.mesh)
    batches = list(padded_batches(context.source, context.num_images, batch_size))
    parts = Parts(folder, [f"images{first}+{count}" for first, count, _ in batches])
    found = []
    for first, count, read in console.track(batches, what):
        name = f"images{first}+{count}"
        if name in parts:
            part = parts.read(name)
        else:
            indices = np.arange(first, first + batch_size, dtype=np.int32)
            arguments = devices.put_global((read(), indices), devices.sharded(context.mesh))
            values = devices.fetch(function(context.params, *arguments))
            part = {key: value[:count] for key, value in zip(columns, values, strict=True)}
            parts.write(name, part)
        found.append(part)
    return [np.concatenate([part[key] for part in found]) for key in columns]
