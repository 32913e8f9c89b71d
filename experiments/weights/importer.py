"""Weights of other programs into a working directory that this one samples, evaluates, trains."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion import schedules
from diffusion.networks import NETWORKS
from experiments import console
from experiments.build import build
from experiments.configs import saved
from experiments.data.datasets import DATASETS
from experiments.experiment import Experiment
from experiments.files.atomic import check_new, whole_folder
from experiments.files.parameters import params_from_tensors
from experiments.lookup import choose, lookup
from experiments.methods.method import chain_of
from experiments.state import TrainState, save
from experiments.weights import sources
from experiments.weights.unet_names import NAMINGS, as_unet, check_unet
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import config_to_dict, write_config
from experiments.workdir.origin import AS_PUBLISHED, BOTH, EMA, ONE, RAW
from experiments.workdir.results import write_results

# What a published model's name contains -> the config of the data set that it was trained on.
PUBLISHED = MappingProxyType(
    {
        "cifar10": "cifar10",
        "celebahq": "celebahq256",
        "bedroom": "lsun_bedroom",
        "church": "lsun_church",
        "cat": "lsun_cat",
    }
)


def config_by_name(where: str, image_shape: tuple[int, ...] | None) -> ConfigDict:
    """The config that goes with a published model, by its name, or by a size that only one has.

    Raises:
        ValueError: where neither tells, with what to pass.
    """
    name = "/".join(where.rstrip("/").split("/")[-2:]).lower()
    found = {
        config
        for part, config in PUBLISHED.items()
        if re.search(rf"(?<![a-z]){part}(?![a-z])", name)
    }
    if not found and image_shape == (32, 32, 3):
        found = {"cifar10"}
    if len(found) != 1:
        raise ValueError(
            f"nothing in {where!r} says which data the weights were trained on. Pass the config "
            "that goes with them, for example --config=experiments/configs/cifar10.py (others: "
            f"{', '.join(sorted(set(PUBLISHED.values()) - {'cifar10'}))}, or your own)."
        )
    chosen = found.pop()
    console.log(f"config    experiments/configs/{chosen}.py; --config=FILE chooses another")
    return importlib.import_module(f"experiments.configs.{chosen}").get_config()


def check_images(config: ConfigDict, source: sources.Source, where: str) -> None:
    """Refuses a config whose images are of another size than the source states.

    A size that the config leaves open becomes that of the source.

    Raises:
        ValueError: naming both.
    """
    if source.image_shape is not None and config.data.get("image_size", 0) is None:
        config.data.image_size = source.image_shape[0]
    dataset = lookup(DATASETS, config.data, "data")()
    if source.image_shape not in (None, dataset.image_shape):
        raise ValueError(
            f"{where} is for images {source.image_shape}, and the data set {dataset.name!r} of the "
            f"config has {dataset.image_shape}. Pass the --config of the data that the weights "
            "were trained on."
        )


def merge(config: ConfigDict, source: sources.Source) -> None:
    """Puts what the source states about network and process into `config`.

    A schedule of the same betas keeps the config's own name for it. Where the config's loss goes
    with another kind of variance than the source has, training goes on with `hybrid` for a learned
    one and with `simple` for a fixed one. More sampling steps than the chain has become 0 (all).
    """
    config.model.update(source.model)
    if not source.process:
        return
    process = dict(source.process)
    ours = lookup(schedules.BETAS, config.schedule, "schedule")()
    theirs = lookup(schedules.BETAS, process["schedule"], "schedule")()
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-6, atol=0):
        config.schedule = ConfigDict(process["schedule"])
    for owner, name in ((config.train, "preview_num_steps"), (config.sample, "num_steps")):
        owner[name] = owner[name] if owner[name] <= len(theirs) else 0
    if config.loss.name == "vlb" and config.loss.get("scale") == 1.0 / len(ours):
        config.loss.scale = 1.0 / len(theirs)
    config.parameterization = ConfigDict(process["parameterization"])
    config.variance = ConfigDict(process["variance"])
    plain, learned = (
        dict(weighting=dict(name="uniform"), space=dict(name="output")),
        config.variance.name == "learned_range",
    )
    if learned and config.loss.name == "simple":
        config.loss = ConfigDict(dict(name="hybrid", vlb_coefficient=1e-3, **plain))
    if not learned and config.loss.name == "hybrid":
        config.loss = ConfigDict(dict(name="simple", **plain))
    config.sample.threshold = ConfigDict(process["threshold"])


def fill(experiment: Experiment, source: sources.Source, where: str) -> tuple[Any, Any]:
    """(parameters, EMA parameters) for the experiment's network.

    Raises:
        ValueError: where the tensors do not fit the network.
    """
    chain = chain_of(experiment.method, "Weights of another program")
    network = as_unet(chain.network, experiment.config.model.name)
    shapes = jax.eval_shape(lambda: experiment.method.init(jax.random.key(0)))
    naming, levels = NAMINGS[source.naming], len(network.channel_multipliers)
    try:
        params = params_from_tensors(source.tensors, naming, shapes, levels)
        if source.ema is None:
            return params, params
        return params, params_from_tensors(source.ema, naming, shapes, levels)
    except ValueError as error:
        raise ValueError(
            f"{where} does not give the network of the config (channels = {network.channels}, "
            f"channel_multipliers = {network.channel_multipliers}, num_blocks = "
            f"{network.num_blocks}, attention_resolutions = {network.attention_resolutions}, "
            f"variance = {experiment.config.variance.name}): {error}"
        ) from error


def choose_set(source: sources.Source, wanted: str | None, where: str) -> tuple[Any, str]:
    """The source with the weights that are to be evaluated, and what they are.

    Args:
        wanted: EMA or RAW, which a source of both is asked for, or which is known of a single set;
            None is the average where there is one.

    Raises:
        ValueError: where the source says that its single set is the other.
    """
    if source.ema is not None:
        return (source._replace(ema=None), RAW) if wanted == RAW else (source, EMA)
    if wanted is not None and source.weights not in (wanted, AS_PUBLISHED):
        raise ValueError(
            f"{where} says that its weights are {source.weights}, and there are no others in it: "
            f"--weights={wanted} asks for what is not there. Leave it out."
        )
    return source, wanted or source.weights


def write_workdir(
    experiment: Experiment, workdir: Path, step: int, params: Any, ema: Any, facts: Mapping
) -> None:
    """A working directory that `sample`, `evaluate` and `train` accept; Adam starts afresh."""
    state = TrainState(jnp.asarray(step, jnp.int32), params, ema, (), ())
    meta = {
        "config": config_to_dict(experiment.config),
        "fingerprint": None,  # of no training data: whatever follows starts a training of its own
        "image_shape": experiment.dataset.image_shape,
        "step": step,
        "weights": facts["weights"],
    }
    with whole_folder(workdir) as folder:
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, step, state, meta)
        write_config(folder, experiment.config)
        write_results(folder, "convert", dict(facts), experiment.config)


class Imported(NamedTuple):
    """A model that another program trained.

    params, ema: of the experiment's network; one set of weights is both.
    facts: what is known of the weights, under the names of the section "convert" of results.json.
    """

    experiment: Experiment
    params: Any
    ema: Any
    step: int
    facts: dict[str, Any]


def read_weights(
    where: str,
    config: ConfigDict | None = None,
    step: int | None = None,
    weights: str | None = None,
) -> Imported:
    """The model that `where` holds.

    Args:
        where: see `sources.read`.
        config: what the weights do not say; None is found by the name or kept with the weights.
        step: training steps behind the weights; None is what the source says, else 0.
        weights: see `choose_set`.

    Raises:
        ValueError, FileNotFoundError, ImportError: saying what is wrong with the source.
    """
    source = sources.read(where)
    sets = ONE if source.ema is None else BOTH
    source, kind = choose_set(source, weights, where)
    if config is None and source.run is not None:
        config = saved.complete(source.run)
    if config is None:
        config = config_by_name(where, source.image_shape)
    name = config.model.name
    check_unet(choose(NETWORKS, name, "model.name"), name)
    check_images(config, source, where)
    merge(config, source)
    experiment = build(config)
    params, ema = fill(experiment, source, where)
    step = next(value for value in (step, source.step, 0) if value is not None)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    facts = {
        "from": where,
        "format": source.naming,
        "files_sha256": dict(source.files),
        "tensors": len(jax.tree.leaves(params)),
        "parameters": count,
        "weights": kind,
        "sets": sets,
        "process": "from the source" if source.process else "from the config",
        "step": step,
    }
    return Imported(experiment, params, ema, step, facts)


def import_weights(
    where: str,
    workdir: Path,
    config: ConfigDict | None,
    step: int | None,
    weights: str | None = None,
) -> None:
    """Reads `where` and writes a working directory; Args and Raises as for `read_weights`."""
    check_new(workdir, "--to")
    experiment, params, ema, step, facts = read_weights(where, config, step, weights)
    write_workdir(experiment, workdir, step, params, ema, facts)
    config, kind = experiment.config, facts["weights"]
    console.log(
        f"read      {facts['tensors']} tensors, {facts['parameters']:,} parameters: {facts['sets']}"
    )
    unknown = "; --weights=ema or raw says what they are, where you know" * (kind == AS_PUBLISHED)
    console.log(f"weights   {kind}, as the protocol of every number will say{unknown}")
    console.log(
        f"process   schedule {config.schedule.name}, {config.parameterization.name}, "
        f"{config.variance.name} ({facts['process']})"
    )
    console.log(f"written   {workdir}, which --mode=sample and --mode=evaluate take as --workdir")
