"""Shuffled batches of a source: everything random is a function of (seed, step)."""

import signal
from functools import partial

import grain
import numpy as np

from experiments.data.dataset import Source, gather


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
) -> grain.DatasetIterator:
    """Endless shuffled batches; the n-th item holds training steps start_step + n * k ... + k - 1.

    The images form one stream, every epoch a fresh permutation of the data set, and step i takes
    images i * batch_size ... of it (a batch may straddle two epochs). So a run resumed at
    start_step goes on exactly, and the batches of processes 0, 1, ... concatenated are the
    one-process batch, in its order.

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
    stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
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
