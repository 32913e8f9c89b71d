"""Checkpoints: the training state, the EMA parameters as an item of their own, and a JSON of facts.

Orbax writes and reads; what it does not notice is checked here: every leaf carries a hash of its
numbers, so a damaged file is an error and never a silently different model.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.workdir.origin import Origin

# Odd, of the golden ratio and of the finalizer of MurmurHash3.
MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)


def layout(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, `float32[3,3,1,32]`, by its path."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every leaf's bytes, by its path; copies every leaf to the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.asarray(leaf).tobytes()) for path, leaf in leaves
    }


def _mixed(x: jax.Array, multiplier: int) -> jax.Array:
    """A bijection of u32 in which every bit of the result depends on the lower and higher ones."""
    x = (x ^ (x >> 16)) * jnp.uint32(multiplier)
    return x ^ (x >> 15)


def _fold(leaf: jax.Array) -> jax.Array:
    """u32[2] of a leaf's bits: sums modulo 2^32 of a bijection of each element, another one at each
    place, so that a change of one element changes both.
    """
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf, width).reshape(-1).astype(jnp.uint32)
    place = jnp.arange(1, bits.size + 1, dtype=jnp.uint32)

    def fold(multiplier: int) -> jax.Array:
        terms = _mixed(bits ^ _mixed(place, multiplier), multiplier)
        return jnp.sum(_mixed(terms, multiplier), dtype=jnp.uint32)

    return jnp.stack([fold(multiplier) for multiplier in MULTIPLIERS])


def hashes(tree: Any) -> dict[str, int]:
    """64 bits of every leaf's numbers, by its path, computed where the leaf lies.

    Nothing but the hashes is copied to the host, and leaves may be cut over devices and processes.
    """
    named = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    folds = jax.device_get(jax.jit(_folds)(list(named.values())))
    return {name: int(a) << 32 | int(b) for name, (a, b) in zip(named, folds, strict=True)}


def tree_hash(tree: Any) -> str:
    """16 hexadecimal digits that tell one set of parameters from another, by values and names."""
    return hashlib.sha256(json.dumps(hashes(tree), sort_keys=True).encode()).hexdigest()[:16]


def _folds(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_fold(leaf) for leaf in leaves]


def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in floats], bool))


class Loaded(NamedTuple):
    """Parameters of a checkpoint."""

    step: int
    params: Any
    origin: Origin


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged or of another shape than the config's model."""


class Checkpoints:
    """The checkpoints of one working directory; a context manager, which waits for the last save.

    A saved step has the items `state` (everything but the EMA), `ema` (the EMA parameters, all that
    sampling and evaluation read) and `meta` (JSON).
    """

    def __init__(self, workdir: Path, keep: int = 2) -> None:
        self.folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
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

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has announced the end of this job; the same in every process.

        Args:
            step: must rise by one from call to call, or the announcement is never agreed on.
        """
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def save(self, step: int, state: Any, ema: Any, meta: dict[str, Any]) -> None:
        """Starts saving a step, which goes on while training does. A step is saved once."""
        if step in self._manager.all_steps():
            return
        items = {"state": state, "ema": ema}
        meta = meta | {
            "layout": {what: layout(tree) for what, tree in items.items()},
            "hashes": {what: hashes(tree) for what, tree in items.items()},
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
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{what: item}))[what]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be read ({what}): {error}\n"
                f"{self._remedy(step)}"
            ) from error

    def _remedy(self, step: int) -> str:
        """What to do about a step that cannot be used."""
        others = [other for other in self._manager.all_steps() if other != step]
        if not others:
            return "No other step exists; start again in another --workdir."
        return f"Older steps exist: {others}. To use one, move {self.folder / str(step)} away."

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a step.

        Raises:
            CheckpointError: if it cannot be read.
        """
        return self._read(step, "meta", ocp.args.JsonRestore())

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
        hashed = "hashes" in meta  # older checkpoints have CRC-32s
        expected = meta["hashes" if hashed else "checksums"][what]
        actual = hashes(tree) if hashed else checksums(tree)
        damaged = [name for name in actual if actual[name] != expected[name]]
        if damaged:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is damaged: {what} differs from what was "
                f"saved in {damaged[:3]}. Move the folder away to use an older step."
            )
        if not jax.jit(_all_finite)(jax.tree.leaves(tree)):
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} was saved with numbers that are not finite "
                f"({what}): its training had diverged. {self._remedy(step)}"
            )
        return tree


def abstract_like(make: Callable[[], Any], sharding: jax.sharding.Sharding) -> Any:
    """Shapes and dtypes of what `make` returns, without computing it, laid out as `sharding`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make)
    )
