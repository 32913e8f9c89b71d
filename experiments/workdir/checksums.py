"""Checksums of arrays: of what a checkpoint holds, and of weights, to know them again."""

import functools
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

BASE = 0x9E3779B97F4A7C15  # odd, so that every power of it is


def crc32s(tree: Any) -> dict[str, int]:
    """CRC-32 of every leaf's bytes, by its path.

    Of weights, to know them again; `sums` need not have every leaf whole, as this has.
    """
    leaves = [(path, _whole(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    _start_copies([leaf for _, leaf in leaves])
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda leaf: zlib.crc32(np.asarray(leaf[1]).tobytes()), leaves)
        return {
            jax.tree_util.keystr(path): crc for (path, _), crc in zip(leaves, found, strict=True)
        }


def _whole(leaf: Any) -> Any:
    """A leaf, gathered from other processes where this one does not have all of it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf


def sums(tree: Any) -> dict[str, str]:
    """A checksum of every leaf, 16 hexadecimal digits by its path, however it lies on devices.

    That is sum_i bits_i BASE^i mod 2^64 over the leaf's elements in row-major order (Karp and Rabin
    1987, with another modulus): every change of one element changes it, and so does every exchange
    of two. A process sums what its own devices hold, in several threads and in each array where it
    lies, so that no process ever has all of an array that is cut over them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    _start_copies(tree)
    with ThreadPoolExecutor() as threads:
        parts = np.array(list(threads.map(lambda leaf: _sum_here(leaf[1]), leaves)), np.uint64)
    if jax.process_count() > 1:
        halves = np.stack([parts >> np.uint64(32), parts & np.uint64(2**32 - 1)])
        gathered = multihost_utils.process_allgather(halves.astype(np.uint32)).astype(np.uint64)
        parts = np.sum((gathered[:, 0] << np.uint64(32)) + gathered[:, 1], axis=0)
    return {
        jax.tree_util.keystr(path): f"{int(found):016x}"
        for (path, _), found in zip(leaves, parts, strict=True)
    }


def _start_copies(tree: Any) -> None:
    """Copies to the host begin for all leaves at once."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()


def _parts(leaf: Any) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
    """What this process has to sum of a leaf, each part once among all processes, and where."""
    if not isinstance(leaf, jax.Array):
        yield np.asarray(leaf), (slice(None),) * np.ndim(leaf)
    elif leaf.is_fully_replicated:
        if jax.process_index() == 0:
            yield np.asarray(leaf), (slice(None),) * leaf.ndim
    else:
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                yield np.asarray(shard.data), shard.index


def _sum_here(leaf: Any) -> int:
    """The part of the sum that this process has."""
    shape, total = np.shape(leaf), 0
    for part, index in _parts(leaf):
        values = np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}").astype(np.uint64)
        values, stride = values.reshape(part.shape), 1
        for axis in reversed(range(len(shape))):
            values = values @ _powers(stride, index[axis].start or 0, values.shape[-1])
            stride *= shape[axis]
        total += int(values)
    return total % 2**64


@functools.lru_cache(maxsize=1024)
def _powers(stride: int, start: int, count: int) -> np.ndarray:
    """BASE^(stride k) mod 2^64 for k of start, ..., start + count - 1."""
    steps = np.full(count, pow(BASE, stride, 2**64), np.uint64)
    if count:
        steps[0] = pow(BASE, stride * start, 2**64)
    return np.multiply.accumulate(steps)
