"""Checkpoints: the training state, the EMA parameters as an item of their own, and a JSON of facts.

Orbax writes and reads; what it does not notice is checked here: every leaf carries a checksum, so a
damaged file is an error and never a silently different model.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments import console, devices
from experiments.workdir.checksums import crc32s, sums
from experiments.workdir.origin import Origin

Found = TypeVar("Found")
Sharding = jax.sharding.Sharding
Placed = Sharding | Callable[[tuple[int, ...]], Sharding]  # of every array, or by its shape
Which = int | str  # of the steps of a folder: one, "latest", or "auto"


def layout(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, `float32[3,3,1,32]`, by its path."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class Loaded(NamedTuple):
    """Parameters of a checkpoint."""

    step: int
    params: Any
    origin: Origin


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged or of another shape than the config's model."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files do not hold what was saved, or whose training had diverged."""


class Checkpoints:
    """The checkpoints of one working directory; a context manager, which waits for the last save.

    Of the steps the last `keep` stay, and for good every multiple of `keep_every`, unless that is 0.
    A saved step has the items `state` (everything but the EMA), `ema` (the EMA parameters, all that
    sampling and evaluation read) and `meta` (JSON).
    """

    def __init__(self, workdir: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=True
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "ema", "meta")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.close()

    def wait(self) -> None:
        """Waits for the last save, and lets others follow."""
        self._manager.wait_until_finished()

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
            raise CheckpointError(f"{self.folder} has no step {which}: it has {steps}.")
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
        left = shutil.disk_usage(self.folder).free
        if left < needed:
            what = f"a checkpoint needs {needed / 2**20:,.1f} MiB, and {left / 2**20:,.1f} are left"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {what}", str(self.folder))
        meta = meta | {
            "layout": {what: layout(tree) for what, tree in items.items()},
            "checksums": {what: sums(tree) for what, tree in items.items()},
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                ema=ocp.args.StandardSave(ema),
                meta=ocp.args.JsonSave(meta),
            ),
        )

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

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a step.

        Raises:
            DamagedCheckpoint: if it cannot be read.
        """
        found = self._read(step, "meta", ocp.args.JsonRestore())
        if not isinstance(found, dict) or not {"layout", "checksums"} <= found.keys():
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} is damaged: its meta lacks what was saved. "
                f"{self._remedy(step)}"
            )
        return found

    def restore(self, step: int, what: str, abstract: Any) -> Any:
        """The item `what` ("state" or "ema") of a step, laid out like `abstract`.

        Args:
            abstract: pytree of jax.ShapeDtypeStruct with shardings.

        Raises:
            CheckpointError: if the item is damaged, or its leaves have another shape or dtype.
        """
        meta = self.meta(step)
        saved, wanted = meta["layout"][what], layout(abstract)
        unlike = sorted(
            name for name in saved | wanted if saved.get(name) != wanted.get(name)
        )  # known before anything is read: Orbax would pad or cast some of these without a word
        if unlike:
            name = unlike[0]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is of another model: {len(unlike)} arrays "
                f"of {what} differ, such as {name}, {saved.get(name, 'absent')} in the checkpoint "
                f"and {wanted.get(name, 'absent')} in the config's model. Use the run's own "
                f"config, or another --workdir."
            )
        tree = self._read(step, what, ocp.args.StandardRestore(abstract))
        expected = meta["checksums"][what]
        older = all(isinstance(crc, int) for crc in expected.values())  # saved before `sums`
        actual: dict[str, Any] = crc32s(tree) if older else sums(tree)
        damaged = [name for name in actual if actual[name] != expected[name]]
        if damaged:
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} is damaged: {what} differs from what was "
                f"saved in {damaged[:3]}. {self._remedy(step)}"
            )
        if not devices.all_agree(_is_finite(tree)):
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} was saved with numbers that are not finite "
                f"({what}): its training had diverged. {self._remedy(step)}"
            )
        return tree


def _is_finite(tree: Any) -> bool:
    """Whether all numbers of floating point that this process holds are finite."""
    shards = (
        np.asarray(shard.data)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        for shard in leaf.addressable_shards
    )
    return all(bool(np.isfinite(shard).all()) for shard in shards)


def abstract_like(make: Callable[[], Any], sharding: Placed) -> Any:
    """Shapes and dtypes of what `make` returns, without computing it, laid out as `sharding`."""
    place = sharding if callable(sharding) else lambda shape: sharding
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x.shape)),
        jax.eval_shape(make),
    )
