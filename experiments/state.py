"""What a training changes, what it is of, and its way in and out of a checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import random
from experiments import console, devices
from experiments.data.dataset import Source, contents, fingerprint, hold_out
from experiments.experiment import Experiment
from experiments.workdir import origin
from experiments.workdir.checkpoint import (
    BEST,
    NAME,
    CheckpointError,
    Checkpoints,
    Which,
)
from experiments.workdir.config import (
    changed,
    check_same,
    check_same_model,
    config_to_dict,
    from_another,
)
from experiments.workdir.protocols import TRAINING
from experiments.workdir.results import UNKNOWN, git_commit, read_results

BOUND = "bpd_fast"  # the validation that is of images held out of train


class TrainState(NamedTuple):
    """All that changes during training. No key: randomness is a function of (seed, step)."""

    step: jax.Array  # i32[], updates done
    params: Any
    ema_params: Any
    opt_state: Any
    memory: Any  # what the method remembers for drawing examples


class Start(NamedTuple):
    """Where a training goes on that was begun before.

    step: as in `Checkpoints.newest`; what is newer than that step is set aside.
    diverged: whether one that diverged goes on, from a step before that; the settings of its
        updates may be others now, and checkpoints and results say so.
    new_data: whether one goes on whose images are others now; checkpoints and results say so.
    ancestor: the run with whose weights it was begun, or is to be where it has no step yet.
    """

    step: Which = "auto"
    diverged: bool = False
    new_data: bool = False
    ancestor: origin.Ancestor | None = None


FROM_NEWEST = Start()


class SavedState(NamedTuple):
    """A TrainState as checkpoints hold it, whose fields name their arrays."""

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    timestep_state: Any  # the memory, under the name that it had first


def init_state(experiment: Experiment) -> TrainState:
    """The state before the first step; the EMA starts at the initial parameters."""
    params = experiment.method.init(random.stream(experiment.config.seed, "init"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=experiment.optimizer.init(params),
        memory=experiment.method.memory(),
    )


def state_layout(experiment: Experiment, mesh: Mesh) -> TrainState:
    """How every array of a training state lies on the devices."""
    place = devices.over_fsdp(mesh)
    return jax.tree.map(lambda x: place(x.shape), jax.eval_shape(lambda: init_state(experiment)))


def fresh_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """`init_state` on the devices."""
    layout = state_layout(experiment, mesh)
    return devices.jit(lambda: init_state(experiment), precision="highest", out_shardings=layout)()


def held_out(experiment: Experiment) -> int:
    """How many images of the train split nothing is trained on, for validations to choose by."""
    train = experiment.config.train
    return train.validate_images if train.validate_every and train.validate_with == BOUND else 0


def training_images(
    experiment: Experiment, opener: Callable[[str], Source] | None = None
) -> Source:
    """The train split without what is held out of it for validations.

    Args:
        opener: opens a split; None is the experiment's own, with labels as the method takes them.

    Raises:
        ValueError: if there is nothing left, or nothing to validate on.
        FileNotFoundError: if the data set is missing.
    """
    source, train = (opener or experiment.open)("train"), experiment.config.train
    if not (train.validate_every and train.validate_with == BOUND):
        return source
    if train.validate_images >= len(source):
        raise ValueError(
            f"config.train.validate_images = {train.validate_images} leaves none of the "
            f"{len(source)} images of the train split to train on. Hold out 1 to "
            f"{len(source) - 1}, a few hundred for instance, or config.train.validate_every = 0."
        )
    return hold_out(source, train.validate_images)[0]


def facts(experiment: Experiment, source: Source) -> dict[str, Any]:
    """What every checkpoint of a training on `source` says of it beside the step."""
    return {
        "config": config_to_dict(experiment.config),
        "fingerprint": fingerprint(experiment.dataset.name, source),
        "image_shape": experiment.dataset.image_shape,
        "held_out": held_out(experiment),
        "contents": contents(source),
        "commit": git_commit(),
        "weights": origin.EMA,  # of whatever it began from, a training goes on averaging
    }


def save(checkpoints: Checkpoints, step: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Saves a step: everything but the EMA, the EMA by itself, and `meta`."""
    item = SavedState(*state._replace(ema_params=()))
    checkpoints.save(step, item, state.ema_params, meta | {"step": step})


def restore(
    experiment: Experiment,
    checkpoints: Checkpoints,
    step: int,
    now: dict[str, Any],
    mesh: Mesh,
    start: Start = FROM_NEWEST,
) -> TrainState:
    """The training state of a step, verified.

    Args:
        now: `facts` of the training that goes on from it.
        start: whether all but the model, and the images, may be other than before.

    Raises:
        ValueError: if it was trained on other data, or under a config of another run.
        CheckpointError: if it cannot be read.
    """
    meta, workdir = checkpoints.meta(step), checkpoints.folder.parent
    if start.ancestor is not None:
        origin.check_ancestor(meta, start.ancestor, workdir)
    saved = meta["fingerprint"]  # None for weights that were converted and not trained on here yet
    if saved is None or start.diverged:
        check_same_model(meta["config"], experiment.config, workdir)
    else:
        check_same(meta["config"], experiment.config, TRAINING, workdir, from_another(workdir))
    before = meta.get("held_out", 0)
    if saved is not None and before != now["held_out"]:
        raise ValueError(
            f"{workdir} was trained on all but {before} images of the train split, and "
            f"{now['held_out']} are held out of it now: what a validation is of must not have been "
            "trained on. Set config.train.validate_every, validate_with and validate_images as "
            "they were (validate_every = 0 holds out none), or choose another --workdir."
        )
    others = other_images(meta, now)
    if others and not start.new_data:
        raise ValueError(
            f"{workdir} was trained on other images: {others}. Restore the data set and "
            "config.data (test_fraction, where it has one) as they were, or choose another "
            "--workdir. If it was changed on purpose, because a picture was damaged for instance, "
            "--continue_with_new_data goes on, and checkpoints and results say so. "
            f"{from_another(workdir)}"
        )
    _warn_of_changes(meta, now)
    place = devices.over_fsdp(mesh)
    state = TrainState(*checkpoints.restore(step, "state", _layout(experiment, meta, place)))
    if saved is None:
        state = fresh_state(experiment, mesh)._replace(step=state.step, params=state.params)
    abstract = devices.abstract_like(lambda: init_state(experiment).ema_params, place)
    return state._replace(ema_params=checkpoints.restore(step, "ema", abstract))


def other_images(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What tells that images are others than those of a checkpoint; "" where nothing does.

    Args:
        then, now: `facts`; of an older training without what is compared here.
    """
    if then["fingerprint"] not in (None, now["fingerprint"]):
        name = now["config"]["data"]["name"]
        return (
            f"the fingerprint was {then['fingerprint']}, but {name!r} has {now['fingerprint']} now"
        )
    unlike = _unlike(then, now)
    if "bytes" in unlike:
        return "the pixels or labels of the train split are not what they were"
    return "names or sizes of files are not what they were" if "files" in unlike else ""


def _unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The kinds of `contents` that both have and that differ."""
    before, after = then.get("contents", {}), now["contents"]
    return [kind for kind in after if before.get(kind, after[kind]) != after[kind]]


def _warn_of_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Tells of what may have changed the numbers of a training that goes on, and need not have."""
    if _unlike(then, now) == ["times"]:
        console.log(
            "WARNING   files of the train split have been written again since this training "
            "began, with the same names and sizes. If pictures were changed, begin anew."
        )
    commits = then.get("commit", UNKNOWN), now["commit"]
    if UNKNOWN not in commits and commits[0] != commits[1]:
        console.log(
            f"WARNING   the code is another than that of the checkpoint: commit {commits[0]} then, "
            f"{commits[1]} now"
        )


def _layout(experiment: Experiment, meta: dict[str, Any], sharding: devices.Placed) -> SavedState:
    """What the item `state` of a checkpoint holds: not the EMA, and for converted weights, which
    nothing was trained with here, neither the optimizer's state nor the method's memory.
    """
    layout = devices.abstract_like(lambda: init_state(experiment), sharding)._replace(ema_params=())
    if meta["fingerprint"] is None:
        layout = layout._replace(opt_state=(), memory=())
    return SavedState(*layout)


def history(
    meta: Mapping[str, Any],
    now: Mapping[str, Any],
    config: ConfigDict,
    diverged: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What is kept of a training's past: from where it went on after it had diverged, and how, or
    with other images; and with the weights of which run it began.

    Args:
        meta: of the checkpoint that it goes on from.
        now: `facts` of the training that goes on.
        config: in force.
        diverged: the section "train" of results.json, where the training goes on after that.
    """
    past = list(meta.get("continued", []))
    if diverged is not None:
        past.append(
            {
                "step": meta["step"],
                "diverged_at": diverged["step"],
                "reason": diverged["reason"],
                "changed": changed(meta["config"], config, TRAINING),
            }
        )
    others = other_images(meta, now)
    if others:
        past.append({"step": meta["step"], "other_images": others})
        console.log(f"continued with other images from step {meta['step']:,}: {others}")
    began = {name: meta[name] for name in ("origin",) if name in meta}
    return began | ({"continued": past} if past else {})


def load_ema(
    experiment: Experiment, workdir: Path, mesh: Mesh, restore_step: Which = "auto"
) -> origin.Loaded:
    """The EMA parameters of the newest checkpoint, or of the best where the config says so.

    Args:
        restore_step: of the newest ones, which: as in `Checkpoints.newest`.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
        ValueError: if it was trained under a config that describes another model, and for a step
            of the best, which is one.
    """
    which = experiment.config.checkpoint
    if which == "best" and restore_step != "auto":
        raise ValueError(
            f"--restore_step={restore_step} is one of the newest checkpoints, and "
            "config.checkpoint = 'best' asks for the best: leave one of the two out."
        )
    folder = workdir / BEST if which == "best" else workdir
    missing = CheckpointError(
        f"{workdir} holds no best checkpoint: train with config.train.validate_every > 0, or set "
        "config.checkpoint to 'latest'."
        if which == "best"
        else f"{workdir} holds no checkpoint yet. Train first, or wait for the first one (every "
        f"{experiment.config.train.checkpoint_every:,} steps). A training that diverged before it "
        "leaves none."
    )
    if not (folder / NAME).exists():  # which opening it would make
        raise missing
    with Checkpoints(folder) as checkpoints:
        if checkpoints.latest_step() is None:
            raise missing
        abstract = devices.abstract_like(
            lambda: experiment.method.init(jax.random.key(0)), devices.replicated(mesh)
        )

        def read(step: int) -> origin.Loaded:
            meta = checkpoints.meta(step)
            check_same_model(meta["config"], experiment.config, workdir)
            if tuple(meta["image_shape"]) != experiment.dataset.image_shape:
                raise ValueError(
                    f"{workdir} was trained on images {tuple(meta['image_shape'])}, and "
                    f"config.data describes {experiment.dataset.image_shape}."
                )
            where_from = origin.of_checkpoint(meta, read_results(workdir))
            return origin.Loaded(step, checkpoints.restore(step, "ema", abstract), where_from)

        return checkpoints.newest(read, "latest" if which == "best" else restore_step)[1]


def load_raw(experiment: Experiment, workdir: Path, step: int, mesh: Mesh) -> Any:
    """The parameters of a step as training left them, not averaged."""
    with Checkpoints(workdir) as checkpoints:
        layout = _layout(experiment, checkpoints.meta(step), devices.replicated(mesh))
        return checkpoints.restore(step, "state", layout).params
