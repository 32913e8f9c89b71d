"""The config of a finished or running training, as saved in its working directory.

    python -m experiments.main --mode=sample --workdir=runs/digits --config.sample.num_images=16

`main` chooses this config by itself where --mode is sample or evaluate and no --config is given.
"""

import contextlib

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.workdir.config import read_config

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
    return complete(read_config(workdir))


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
