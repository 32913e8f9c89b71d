"""What a config means, as the loop, the modes and the metrics are handed it."""

from typing import NamedTuple

import ml_collections
import optax

from experiments.data.dataset import Dataset
from experiments.methods.method import Encoder, Method
from experiments.optimizers import GradientFn


class Experiment(NamedTuple):
    """Everything that a config means. Building one allocates no parameters and reads no data."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    encoder: Encoder
    method: Method
    optimizer: optax.GradientTransformation
    gradients: GradientFn
