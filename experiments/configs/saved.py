"""The config of a finished or running training, as saved in its working directory.

    python -m experiments.main --mode=sample --workdir=runs/digits --config.sample.num_images=16

`main` chooses this config by itself where --mode is sample or evaluate and no --config is given.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.workdir.autoencoder import copied, copy_of
from experiments.workdir.config import config_from_dict, read_config

# Sections that say what is done with a model, not what it is.
SECTIONS = ("loader", "train", "sample", "evaluate", "figures")


def complete(config: ConfigDict) -> ConfigDict:
    """`config` with the defaults of fields that are younger than it."""
    defaults = base.get_config()
    with config.unlocked():
        if "checkpoint" not in config:
            config.checkpoint = defaults.checkpoint
        for section in SECTIONS:
            if section not in config:
                config[section] = ConfigDict()
            for name, value in defaults[section].items(preserve_field_references=True):
                if name not in config[section]:
                    config[section][name] = value
    return config


def get_config(workdir: str) -> ConfigDict:
    """The config in `workdir`.

    Raises:
        FileNotFoundError: if there is none, saying how a run is started.
        ValueError: if it is damaged.
    """
    return with_own_autoencoder(workdir, complete(read_config(workdir)))


def with_own_autoencoder(workdir: str, config: ConfigDict) -> ConfigDict:
    """The saved config of a run, with the copy of the autoencoder that it keeps, if it does."""
    if config.get("encoder", {}).get("name") == "vae" and copied(Path(workdir)) is not None:
        config.encoder.update(workdir=str(copy_of(Path(workdir))), checkpoint=0)
    return config


def with_autoencoder_of(workdir: str, config: ConfigDict) -> ConfigDict:
    """`config` with the autoencoder that the run in `workdir` began with, if it names the same.

    So the same command continues a run whose autoencoder was trained on, moved or removed since.
    """
    encoder = config.get("encoder", {})
    if encoder.get("name") != "vae" or encoder.get("identity"):
        return config
    known = copied(Path(workdir))
    own = known is not None
    if known is None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            known = read_config(workdir).encoder.to_dict()
    if not known or not known.get("identity") or not _same_place(known, encoder):
        return config
    with config.unlocked():
        config.encoder = config_from_dict({"encoder": known}).encoder
    return with_own_autoencoder(workdir, config) if own else config


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True where two sections `encoder` name the same step of the same folder."""
    places = [
        (Path(each["workdir"]).expanduser().resolve(), each.get("checkpoint", 0))
        for each in (one, other)
    ]
    return places[0] == places[1]


def with_classes_of(workdir: str, config: ConfigDict) -> ConfigDict:
    """`config` with its classes numbered as the run in `workdir` numbers them, where there is one.

    So the same command continues a run whose folders were numbered by another rule.
    """
    data = config.get("data", {})
    if not data.get("num_classes") or data.get("classes") is not None:
        return config
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is written anew
        before = read_config(workdir).data
        if (before.name, before.get("num_classes")) == (data.name, data.num_classes):
            with config.unlocked():
                config.data.classes = before.get("classes")
    return config
