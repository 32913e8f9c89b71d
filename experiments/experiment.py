"""What a config means, as the loop, the modes and the metrics are handed it."""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections
import optax

from experiments.data.dataset import Dataset, Source
from experiments.methods.method import Encoder, Method
from experiments.optimizers import GradientFn


class Experiment(NamedTuple):
    """Everything that a config means. Building one allocates no parameters of what is trained.

    open: "train" | "test" -> the data set's source, its labels as the method takes them.
    """

    config: ml_collections.ConfigDict
    dataset: Dataset
    open: Callable[[str], Source]
    encoder: Encoder
    method: Method
    optimizer: optax.GradientTransformation
    gradients: GradientFn
