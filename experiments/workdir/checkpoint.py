"""Checkpoints: the training state, the EMA parameters as an item of their own, and a JSON of facts.

Orbax writes and reads; what it does not notice is checked here: every leaf carries a checksum, so
that a damaged file is an error and never a silently different model.
"""

import errno
import functools
import itertools
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from experiments import console, devices

BASE = 0x9E3779B97F4A7C15  # odd, so that every power of it is
NAME, BEST, REMOTE = "checkpoints", "best", "gs://"
Found = TypeVar("Found")
Which = int | str  # of the steps of a folder: one, "latest", or "auto"


def layout(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, `float32[3,3,1,32]`, by its path."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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
    shape: tuple[int, ...] = np.shape(leaf)
    total = 0
    for part, index in _parts(leaf):
        bits = np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}")
        values: Any = bits.astype(np.uint64).reshape(part.shape)
        stride = 1
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


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged or of another shape than the config's model."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files do not hold what was saved, or whose training had diverged."""


def folder_of(workdir: Path) -> Any:
    """Where the checkpoints of a working directory are; a path, which may be of a bucket.

    That is its folder `checkpoints`, or what a file of that name says.

    Raises:
        CheckpointError: if there is such a file, and no address of a bucket in it.
    """
    place = (workdir / NAME).absolute()
    address = place.read_text(errors="replace").strip() if place.is_file() else str(place)
    if place.is_file() and not (address.startswith(REMOTE) and "\n" not in address):
        raise CheckpointError(f"{place} is a file and holds no address, {REMOTE}BUCKET/FOLDER.")
    if address.startswith(REMOTE):
        import fsspec.config  # of the extra gcs, as what reaches a bucket

        fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False  # others write too
    return epath.Path(address)


class Checkpoints:
    """The checkpoints of one working directory; a context manager, which waits for the last save.

    The last `keep` steps stay, and for good every multiple of `keep_every`, unless that is 0.
    A saved step has the items `state` (everything but the EMA), `ema` (the EMA parameters, all that
    sampling and evaluation read) and `meta` (JSON).
    """

    def __init__(self, workdir: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder = folder_of(workdir)
        self._remote = str(self.folder).startswith(REMOTE)
        self._made = not self._remote and not self.folder.exists()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=True
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "ema", "meta")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save; a folder that was made here goes where it holds none."""
        with self._patience():
            self._manager.close()
        if self._made and devices.is_main_process() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def wait(self) -> None:
        """Waits for the last save, and lets others follow."""
        with self._patience():
            self._manager.wait_until_finished()

    def _patience(self) -> AbstractContextManager[None]:
        return console.told_when_slow(f"a checkpoint to be written to {self.folder}")

    def latest_step(self) -> int | None:
        """The newest step that was saved completely; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that were saved completely and are still there, rising."""
        return sorted(self._manager.all_steps())

    def newest(self, read: Callable[[int], Found], which: Which = "auto") -> tuple[int, Found]:
        """A step, the same in every process, and what `read` makes of it.

        Args:
            read: raises DamagedCheckpoint for a step that cannot be used.
            which: "auto", the newest step that is not damaged, which is said where it is not the
                newest of all; "latest", that one; or a step.

        Raises:
            CheckpointError: there is no such step, or it is damaged; of "auto", if all are.
        """
        steps = self.steps()
        if which not in ("auto", "latest", *steps):
            none = "it has none at all. Without --restore_step a training begins."
            there = f"it has {steps}." if steps else none
            raise CheckpointError(f"{self.folder} has no step {which}: {there}")
        tried = [step for step in steps if which in ("auto", "latest", step)][::-1]
        if which == "latest":
            tried = tried[:1]
        refusals: list[CheckpointError] = []
        for step in tried:
            found: Found | None = None
            refusal = DamagedCheckpoint(f"{self.folder / str(step)}: another process refused it.")
            try:
                found = read(step)
            except DamagedCheckpoint as error:
                refusal = error
            if devices.all_agree(found is not None) and found is not None:
                if refusals:
                    console.log(f"WARNING   using step {step:,}, the newest that is sound")
                return step, found
            refusals.append(refusal)
            if len(tried) > 1:
                console.log(f"WARNING   {refusal}")
        raise refusals[0] if refusals else CheckpointError(f"{self.folder} holds no checkpoint.")

    def set_aside(self, after: int) -> None:
        """Moves what is newer than a step away, for a training that goes on from there.

        Nothing is deleted: the steps are in `set_aside`, beside the folder of the checkpoints.
        """
        newer = [step for step in self.steps() if step > after]
        if not newer:
            return
        aside = self.folder.with_name("set_aside")
        if devices.is_main_process():
            aside.mkdir(exist_ok=True)
            if self._remote:  # where a folder is only there with something in it
                (aside / "about.txt").write_text("Newer than what a training went on from.\n")
            for step in newer:
                names = (aside / f"{step}{f'.{i}' if i else ''}" for i in itertools.count())
                place = next(name for name in names if not name.exists())
                (self.folder / str(step)).rename(place)
                console.log(f"set aside step {step:,}: {place}")
        devices.all_agree(True)  # none looks before the files have moved
        self._manager.reload()

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has announced the end of this job; the same in every process.

        Args:
            step: must rise by one from call to call, or the announcement is never agreed on.
        """
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def save(self, step: int, state: Any, ema: Any, meta: dict[str, Any]) -> None:
        """Starts saving a step, which goes on while training does. A step is saved once.

        Raises:
            OSError: with errno ENOSPC, if the disk has less room than that takes.
        """
        if step in self._manager.all_steps():
            return
        items = {"state": state, "ema": ema}
        needed = 2**20 + sum(1.1 * leaf.nbytes for leaf in jax.tree.leaves(items))
        left = math.inf if self._remote else shutil.disk_usage(self.folder).free
        if left < needed:
            what = f"a checkpoint needs {needed / 2**20:,.1f} MiB, and {left / 2**20:,.1f} are left"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {what}", str(self.folder))
        meta = meta | {
            "layout": {what: layout(tree) for what, tree in items.items()},
            "checksums": {what: sums(tree) for what, tree in items.items()},
        }
        meta = json.loads(json.dumps(meta))
        meta["checksum"] = _of_meta(meta)
        args = {what: ocp.args.StandardSave(tree) for what, tree in items.items()}
        with self._patience():
            self._manager.wait_until_finished()
            self._manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))

    def _read(self, step: int, what: str, item: Any) -> Any:
        why: Exception | str = "another process could not read it."
        found = None
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**{what: item}))[what]
        except Exception as error:
            why = error
        if not devices.all_agree(not isinstance(why, Exception)):
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} cannot be read ({what}): {why}\n"
                f"{self._remedy(step)}"
            ) from (why if isinstance(why, Exception) else None)
        return found

    def _remedy(self, step: int) -> str:
        """What to do about a step that cannot be used."""
        others = [other for other in self._manager.all_steps() if other != step]
        if not others:
            return "No other step exists; start again in another --workdir."
        return f"Older steps exist: {others}; --restore_step={others[-1]} uses that older step."

    def _damaged(self, step: int, why: str) -> DamagedCheckpoint:
        where = self.folder / str(step)
        return DamagedCheckpoint(f"checkpoint {where} is damaged: {why}. {self._remedy(step)}")

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a step.

        Raises:
            DamagedCheckpoint: if it cannot be read.
        """
        found = self._read(step, "meta", ocp.args.JsonRestore())
        if not isinstance(found, dict) or not {"layout", "checksums"} <= found.keys():
            raise self._damaged(step, "its meta lacks what was saved")
        if "checksum" not in found and _is_older(found):
            return found
        if found.pop("checksum", None) != _of_meta(found):
            raise self._damaged(step, "its meta is not what was saved")
        return found

    def restore(self, step: int, what: str, abstract: Any, partial: bool = False) -> Any:
        """The item `what` ("state" or "ema") of a step, laid out like `abstract`.

        Args:
            abstract: pytree of jax.ShapeDtypeStruct with shardings.
            partial: whether to read of the named tuple `abstract` only fields that hold something.

        Raises:
            CheckpointError: if the item is damaged, or its leaves have another shape or dtype.
        """
        meta = self.meta(step)
        saved, wanted = meta["layout"][what], layout(abstract)
        # Known before anything is read: Orbax would pad or cast some of these without a word.
        asked = wanted if partial else saved | wanted
        unlike = sorted(name for name in asked if saved.get(name) != wanted.get(name))
        if unlike:
            name = unlike[0]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is of another model: {len(unlike)} arrays "
                f"of {what} differ, such as {name}, {saved.get(name, 'absent')} in the checkpoint "
                f"and {wanted.get(name, 'absent')} in the config's model. Use the run's own "
                f"config, or another --workdir."
            )
        if partial:
            some = {f: part for f, part in abstract._asdict().items() if jax.tree.leaves(part)}
            how = ocp.checkpoint_utils.construct_restore_args(some)
            only = ocp.args.PyTreeRestore(some, restore_args=how, partial_restore=True)
            tree = abstract._replace(**self._read(step, what, only))
        else:
            tree = self._read(step, what, ocp.args.StandardRestore(abstract))
        expected = meta["checksums"][what]
        actual: dict[str, Any] = crc32s(tree) if _is_older(meta) else sums(tree)
        damaged = [name for name in actual if actual[name] != expected[name]]
        if damaged:
            raise self._damaged(step, f"{what} differs from what was saved in {damaged[:3]}")
        if not devices.all_agree(_is_finite(tree)):
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} was saved with numbers that are not finite "
                f"({what}): its training had diverged. {self._remedy(step)}"
            )
        return tree


def _of_meta(meta: dict[str, Any]) -> int:
    """CRC-32 of what a checkpoint says of itself."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _is_older(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint is from before `sums`, and has the CRC-32 of every leaf instead."""
    found = [crc for item in meta["checksums"].values() for crc in item.values()]
    return bool(found) and all(isinstance(crc, int) for crc in found)


def _is_finite(tree: Any) -> bool:
    """Whether all numbers of floating point that this process holds are finite."""
    shards = (
        np.asarray(shard.data)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        for shard in leaf.addressable_shards
    )
    return all(bool(np.isfinite(shard).all()) for shard in shards)
