"""Shuffled batches of a source: everything random is a function of (seed, step)."""

import signal
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from experiments.data.dataset import Dataset, Source, gather

READ = 1_000  # labels at a time
FEW = 500  # images, of which a network of usual size learns each by heart


class Groups(NamedTuple):
    """Images in groups.

    order: int[N], the images, those of a group side by side.
    starts: int[G + 1], where in `order` each group begins, and N.
    """

    order: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " g_plus_1"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def member(self, group: int, draw: np.random.Generator) -> int:
        """An image of a group, each as likely as the others."""
        return int(self.order[draw.integers(self.starts[group], self.starts[group + 1])])


def grouped(names: Any) -> Groups:
    """Images with equal names, [N] of any kind, in groups."""
    _, group = np.unique(names, return_inverse=True)
    sizes = np.bincount(group)
    return Groups(np.argsort(group, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))


def groups_of(balance: str, dataset: Dataset, source: Any) -> Groups | None:
    """The groups that training draws evenly; None of "images".

    Args:
        balance: images | labels | subjects.
        source: images of the data set, with its own labels; for "subjects" it has `text(index)`.
    """
    if balance == "subjects" and dataset.subject_of is not None:
        return grouped([dataset.subject_of(source.text(i)) for i in range(len(source))])
    return grouped(_labels(source)) if balance == "labels" else None


def _labels(source: Source) -> Int[np.ndarray, " n"]:
    """Those of all images."""
    starts = range(0, len(source), READ)
    parts = [range(start, min(start + READ, len(source))) for start in starts]
    return np.concatenate([gather(source, part)["label"] for part in parts])


def _gather_steps(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Indices int[k, B] to {"image": uint8[k, B, H, W, C], "label": int32[k, B]}."""
    flat = gather(source, indices.ravel().tolist())
    return {key: value.reshape(*indices.shape, *value.shape[1:]) for key, value in flat.items()}


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    steps_per_call: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 4,
    prefetch: int = 4,
    groups: Groups | None = None,
) -> grain.DatasetIterator:
    """Endless shuffled batches; the n-th item holds training steps start_step + n * k ... + k - 1.

    The images form one stream, every epoch a fresh permutation of the data set, and step i takes
    images i * batch_size ... of it (a batch may straddle two epochs). So a run resumed at
    start_step goes on exactly, and the batches of processes 0, 1, ... concatenated are the
    one-process batch, in its order.

    With groups an epoch is a permutation of the groups, and has one image of each, drawn anew.

    Args:
        seed: 0 <= seed < 2**32; decides the whole stream.
        batch_size: images per training step over all processes (B below).
        start_step: first training step (0-based) to deliver.
        steps_per_call: training steps in one item (k below).
        process_index, process_count: which part of each batch this process gets.
        num_workers: processes that read and decode; 0 uses threads only. Each gets a pickled copy
            of `source`; the program needs a `__main__` guard and must have parsed its absl flags.
        num_threads: reading threads, in each worker if there are any; 0 reads when asked.
        prefetch: items read ahead, in each worker if there are any, which holds at least one.
        groups: of the images of `source`, to be drawn evenly; None draws images evenly.
    Returns:
        Iterator of {"image": uint8[k, B / process_count, H, W, C], "label": int32[k, B /
        process_count]}; its `close()` stops the threads and workers.
    Raises:
        ValueError: batch_size is not divisible by process_count, or process_index or start_step is
            out of range.
    """
    if batch_size % process_count:
        raise ValueError(
            f"config.train.batch_size = {batch_size} must be a multiple of the number of "
            f"processes, {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}.")
    if start_step < 0:
        raise ValueError(f"start_step {start_step} must be >= 0.")
    if len(source) == 0:
        raise ValueError("The source is empty: there is nothing to batch.")
    drawn = len(source) if groups is None else len(groups)
    stream = grain.MapDataset.range(drawn).seed(seed).shuffle().repeat()
    if groups is not None:
        stream = stream.random_map(groups.member)
    shares = stream.batch(batch_size // process_count, drop_remainder=True)
    mine = shares[start_step * process_count + process_index :: process_count]
    items = mine.batch(steps_per_call, drop_remainder=True).map(partial(_gather_steps, source))
    items = items.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    )
    if num_workers:
        items = items.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=max(prefetch, 1)
            ),
            worker_init_fn=_ignore_interrupts,
        )
    return iter(items)


def _ignore_interrupts(worker_index: int, worker_count: int) -> None:
    """Ctrl-C reaches the whole process group, but ending the workers is the program's to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def describe_data(config: ConfigDict, num_images: int, groups: Groups | None = None) -> list[str]:
    """How many images there are and how often each is seen, and what is odd about that.

    Args:
        config: the section `train`.
        num_images: of the train split without what is held out.
        groups: that are drawn evenly, and not the images.
    """
    epochs = config.num_steps * config.batch_size / num_images
    lines = [
        f"training  {num_images:,} images, {config.num_steps:,} steps of {config.batch_size}: "
        f"{epochs:,.3g} epochs"
    ]
    if groups is not None:
        lines.append(
            f"balance   {len(groups):,} {config.balance} evenly, each "
            f"{epochs * num_images / len(groups):,.3g} times"
        )
    if config.batch_size > num_images:
        lines.append(
            f"WARNING   config.train.batch_size = {config.batch_size} is more than there are "
            "images: a batch shows some of them twice."
        )
    if num_images < FEW:
        lines.append(
            f"WARNING   {num_images} images are few: expect a model that repeats them. Some "
            "thousand are usual; flips (config.train.flip) and more dropout help a little."
        )
    return lines
