"""The data sets by name."""

from collections.abc import Callable
from types import MappingProxyType

from experiments.data.celeb_a_hq import celeb_a_hq_256
from experiments.data.cifar10 import cifar10
from experiments.data.dataset import Dataset
from experiments.data.digits import digits
from experiments.data.emoji import emoji
from experiments.data.fashion_mnist import fashion_mnist
from experiments.data.image_folder import image_folder

DATASETS: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": digits,
        "fashion_mnist": fashion_mnist,
        "cifar10": cifar10,
        "celeb_a_hq/256": celeb_a_hq_256,
        "image_folder": image_folder,
        "emoji": emoji,
    }
)
