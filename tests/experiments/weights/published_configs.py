"""The configs with which the published fixtures are converted."""

from ml_collections import ConfigDict

from experiments.configs import celebahq256, cifar10
from tests.fixtures.published import MODELS


def base_config(name: str) -> ConfigDict:
    """The config to convert with: the 256x256 network's fixture is of smaller images."""
    if MODELS[name].config == "cifar10":
        return cifar10.get_config()
    config = celebahq256.get_config()
    size = MODELS[name].image_shape[0]
    config.data = ConfigDict(dict(name="image_folder", path="", image_size=size))
    return config
