"""From a config to an experiment: all that a run is, before anything is computed."""

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.configs import ranges
from experiments.data.datasets import DATASETS
from experiments.experiment import Experiment
from experiments.lookup import lookup
from experiments.methods.diffusion import diffusion
from experiments.methods.method import Method, pixels
from experiments.optimizers import CLIPS, OPTIMIZERS

# name -> (config, dataset, encoder) -> Method
METHODS: MappingProxyType[str, Any] = MappingProxyType({"diffusion": diffusion})


def build(config: ml_collections.ConfigDict) -> Experiment:
    """The experiment that `config` describes, as it is after `by_size.fill`.

    Raises:
        ValueError: for a value out of its range, an unknown name, a stale keyword, an impossible
            size, or a combination of choices that has no meaning; before anything is compiled.
    """
    ranges.check(config)
    dataset = lookup(DATASETS, config.data, "data")()
    encoder = pixels(dataset.image_shape, dataset.num_levels)
    method = lookup(METHODS, config.method, "method")(config, dataset, encoder)
    optimizer = lookup(OPTIMIZERS, config.optimizer, "optimizer")()
    gradients = lookup(CLIPS, config.clip, "clip")()
    jax.eval_shape(lambda: _one_loss(method, encoder.shape))  # refuses what has no meaning
    return Experiment(config, dataset, encoder, method, optimizer, gradients)


def _one_loss(method: Method, shape: tuple[int, ...]) -> jax.Array:
    """The loss of one example of zeros, to be traced only."""
    x_0, key = jnp.zeros((1, *shape)), jax.random.key(0)
    labels = jnp.zeros(1, jnp.int32)
    examples = method.draw(method.memory(), x_0, labels, lambda name: jax.random.split(key, 1))
    return method.losses(method.init(key), examples, key)[0]
