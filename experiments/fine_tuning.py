"""Fine-tuning: a training that begins with the weights of another run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import console, devices
from experiments.experiment import Experiment
from experiments.state import SavedState, TrainState, fresh_state, init_state
from experiments.workdir.checkpoint import BEST, NAME, Checkpoints, layout
from experiments.workdir.config import changed
from experiments.workdir.origin import BOTH, ONE, Ancestor, of_checkpoint
from experiments.workdir.protocols import DEFINING
from experiments.workdir.results import read_results

# What the numbers of a network do not depend on, of config.model and config.text.
FREE = ("dtype", "remat", "dropout", "label_dropout")
# What gives them another meaning, and leaves them of use.
MEANING = ("encoder", "schedule", "path", "parameterization", "variance", "likelihood")
SHOWN = 5  # arrays that an error lists


def begin(
    experiment: Experiment, ancestor: Ancestor | None, now: Mapping[str, Any], mesh: Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step, and what its checkpoints say of where it came from.

    With an ancestor the parameters are those that its training left, and their average begins at
    its average. Steps are counted from 0, and so are the rate's warm-up and all noise. Of the
    optimizer the moments are taken over where that is asked for; the method's memory begins anew.

    Args:
        ancestor: None is a training of its own, from random parameters.
        now: `facts` of the training that begins.

    Raises:
        ValueError: for a folder that holds no run, and one of another network or image size.
        CheckpointError: if there is no such checkpoint, or it cannot be read.
    """
    fresh = fresh_state(experiment, mesh)
    if ancestor is None:
        return fresh, {}
    run = Path(ancestor.run).expanduser()
    folder = run / BEST if ancestor.checkpoint == "best" else run
    if not (folder / NAME).exists():
        raise ValueError(_not_there(run, ancestor))
    place = devices.over_fsdp(mesh)
    state = devices.abstract_like(lambda: init_state(experiment), place)
    wanted = SavedState((), state.params, (), state.opt_state if ancestor.optimizer else (), ())
    with Checkpoints(folder) as checkpoints:

        def read(step: int) -> tuple[dict[str, Any], Any, Any]:
            meta = checkpoints.meta(step)
            _check(meta, experiment, ancestor, now, layout(wanted))
            ema = checkpoints.restore(step, "ema", state.ema_params)
            return meta, ema, checkpoints.restore(step, "state", wanted, partial=True)

        which = "latest" if ancestor.checkpoint == "best" else ancestor.checkpoint
        step, (meta, ema, found) = checkpoints.newest(read, which)
    fresh = fresh._replace(params=found.params, ema_params=ema)
    if ancestor.optimizer:
        fresh = fresh._replace(opt_state=_with_own_rate(found.opt_state, fresh.opt_state))
    told = _record(meta, experiment.config, ancestor, step, read_results(run))
    _say(told)
    return fresh, {"origin": told}


def _with_own_rate(taken: Any, fresh: Any) -> Any:
    """An optimizer's state whose rate is at its beginning, and all else as it was."""

    def is_rate(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def chosen(old: Any, new: Any) -> Any:
        return new if is_rate(new) else old

    return jax.tree.map(chosen, taken, fresh, is_leaf=is_rate)


def _not_there(run: Path, ancestor: Ancestor) -> str:
    if ancestor.checkpoint == "best" and (run / NAME).exists():
        return (
            f"--from={run}:best: {run} holds no best checkpoint, which trainings with "
            "config.train.validate_every > 0 keep. Leave :best out for the newest."
        )
    if run.exists():
        return (
            f"--from={run} is no working directory with a checkpoint. Name the --workdir of a "
            "training; weights of another program become one by python -m experiments.convert "
            f"--from={shlex.quote(str(run))} --to=runs/converted"
        )
    return f"--from={run} does not exist: name the --workdir of a training."


def _check(
    meta: Mapping[str, Any],
    experiment: Experiment,
    ancestor: Ancestor,
    now: Mapping[str, Any],
    wanted: Mapping[str, str],
) -> None:
    """Refuses weights that are of another network, and what cannot go on with them.

    Args:
        wanted: layout of what is to be read of the item `state`.
    """
    config, shape = experiment.config, experiment.dataset.image_shape
    own = changed(meta["config"], config, ("method.name", "model", "text"))
    fields = [
        f"  config.{field}: {then} there, {this} here"
        for field, (then, this) in own.items()
        if field.split(".")[-1] not in FREE
    ]
    if tuple(meta["image_shape"]) != shape:
        fields.append(f"  images: {tuple(meta['image_shape'])} there, {shape} here")
    saved = meta["layout"]["state"]
    leaves = _unlike(saved, wanted, ".params")
    if fields or leaves:
        raise ValueError(
            f"--from={ancestor.run} holds weights of another network than the config's:\n"
            + "\n".join([*fields, *leaves])
            + f"\nBegin with the config of that run ({ancestor.run}/config.json), and change only "
            "what a network does not depend on: data of the same shape and number of classes, "
            "optimizer, loss, train."
        )
    others = _unlike(saved, wanted, ".opt_state") if ancestor.optimizer else []
    if others:
        raise ValueError(
            f"--from={ancestor.run} has no state of the optimizer that the config has:\n"
            + "\n".join(others)
            + "\nLeave --from_optimizer out, and it begins anew, or choose config.optimizer as it "
            "was there."
        )
    before, held_out = meta.get("held_out", 0), now["held_out"]
    same_data = meta["config"].get("data") == now["config"]["data"]
    if meta["fingerprint"] is not None and same_data and held_out and before != held_out:
        raise ValueError(
            f"--from={ancestor.run} was trained on all but {before} images of this train split, "
            f"and {held_out} are to be held out of it now: what a validation is of must not have "
            "been trained on. Set config.train.validate_every = 0, or hold out as many."
        )


def _unlike(saved: Mapping[str, str], wanted: Mapping[str, str], item: str) -> list[str]:
    """Lines on the arrays of an item that differ: path, then there, then here."""
    unlike = [
        f"  {name.removeprefix(item)}: {saved.get(name, 'absent')} there, "
        f"{wanted.get(name, 'absent')} here"
        for name in sorted({*saved, *wanted})
        if name.startswith(item) and saved.get(name) != wanted.get(name)
    ]
    more = len(unlike) - SHOWN
    return unlike[:SHOWN] + [f"  and {more} more arrays"] * (more > 0)


def _record(
    meta: Mapping[str, Any],
    config: ConfigDict,
    ancestor: Ancestor,
    step: int,
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """The origin as checkpoints keep it: run and step of the weights, and changed fields."""
    known = of_checkpoint(meta, results)
    one = meta["fingerprint"] is None and results.get("convert", {}).get("sets", ONE) != BOTH
    return {
        **ancestor._asdict(),
        "step": step,
        "sets": ONE if one else BOTH,
        "weights": known.weights,
        "selected_on": known.selected_on,
        "fingerprint": meta["fingerprint"],
        "changed": changed(meta["config"], config, DEFINING),
        **({"origin": meta["origin"]} if "origin" in meta else {}),
    }


def _say(told: Mapping[str, Any]) -> None:
    with_it = "with its optimizer" if told["optimizer"] else "the optimizer anew"
    console.log(
        f"begins    with the weights of {told['run']}, step {told['step']:,} ({told['sets']}; "
        f"{with_it})"
    )
    for name, (then, now) in told["changed"].items():
        other = name.split(".")[0] in MEANING
        note = "WARNING  " if other else "         "
        why = ": the weights are of the former" if other else ""
        console.log(f"{note} {name} {then} -> {now}{why}")
