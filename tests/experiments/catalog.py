"""The configs that can be run, by what they are: read from the configs themselves.

Modules of experiments/configs that only help others, or whose config is left open, have no
`get_config` that takes an ablation.
"""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import configs
from experiments.build import HEEDS, build
from experiments.configs import base, by_size, ranges
from experiments.lookup import lookup
from experiments.optimizers import CLIPS, OPTIMIZERS

# All that a build reads of a config, beside that every value must be in its range.
READ = (
    *("data", "encoder", "method", "likelihood", "text", "model", "optimizer", "clip"),
    *("schedule", "parameterization", "variance", "loss", "timesteps"),
    *("sample.sampler", "sample.spacing", "sample.threshold", "sample.num_steps"),
    *("sample.guidance_scale", "sample.guidance_interval"),
    *("evaluate.decoder", "evaluate.clip_denoised", "train.preview_num_steps"),
    *("train.balance", "train.validate_every", "train.validate_with", "train.preview_every"),
    *(field for fields in HEEDS.values() for field in fields),
)


def modules() -> Iterator[tuple[str, Any]]:
    """Every config that can be run."""
    for found in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"experiments.configs.{found.name}")
        make = getattr(module, "get_config", None)
        if make and "ablation" in inspect.signature(make).parameters:
            yield found.name, make


MAKERS = dict(modules())


def get(name: str, ablation: str = "") -> ConfigDict:
    """A config, with what it leaves to be said."""
    config: ConfigDict = MAKERS[name](ablation)
    if "path" in config.data:
        config.data.path = "pictures"
        config.data.image_size = config.data.image_size or 16
    return by_size.fill(config)


def covers(key: str, field: str) -> bool:
    """Whether a dotted field is in a subtree, or is it."""
    return field == key or field.startswith(key + ".")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of the leaves, and their values."""
    leaves = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return leaves


def read_by_build(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that READ names, flat."""
    leaves = flat(config.to_dict()).items()
    return {name: value for name, value in leaves if any(covers(key, name) for key in READ)}


def changed(config: ConfigDict, other: ConfigDict) -> set[str]:
    """Dotted fields that differ, or that one of the two lacks."""
    a, b = flat(config.to_dict()), flat(other.to_dict())
    missing = object()
    return {name for name in a | b if a.get(name, missing) != b.get(name, missing)}


def _other_networks() -> dict[str, str]:
    """Name -> the config with the network of `base` that it is otherwise."""
    whole = {name: get(name) for name in MAKERS}
    usual = base.get_config().model.name
    return {
        name: plain
        for name, config in whole.items()
        for plain, other in whole.items()
        if config.model.name != usual == other.model.name
        and all(covers("model", field) for field in changed(config, other))
    }


BUILT: set[str] = set()  # by `build_once`
WHOLE = tuple(section for section in READ if section not in ("optimizer", "clip"))


def build_once(config: ConfigDict, groups: Sequence[tuple[str, ...]] = (WHOLE,)) -> None:
    """Builds, unless configs were built in which a build reads the same of each group of sections.

    Optimizer and clipping, which meet nothing else, are looked up each time.

    Raises:
        ValueError: as `build`.
    """
    ranges.check(config)
    lookup(OPTIMIZERS, config.optimizer, "optimizer")()
    lookup(CLIPS, config.clip, "clip")()
    read = read_by_build(config).items()
    parts = {
        json.dumps([group, {k: v for k, v in read if any(covers(section, k) for section in group)}])
        for group in groups
    }
    if not parts <= BUILT:
        build(config)
        BUILT.update(parts)


VAES = [name for name in MAKERS if get(name).method.name == "vae"]
LATENTS = [name for name in MAKERS if get(name).encoder.name == "vae"]  # of a trained VAE
OTHER_NETWORKS = _other_networks()
PIXELS = [name for name in MAKERS if name not in LATENTS]
DATA = [name for name in PIXELS if name not in (*VAES, *OTHER_NETWORKS)]  # the paper's method
