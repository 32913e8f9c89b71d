"""What turns images into features: Inception where it is, else the data set's classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import console, devices
from experiments.data.dataset import Dataset
from experiments.features import inception
from experiments.features.classifier import Classifier, check_labels, load_classifier
from experiments.features.inception_weights import find, load_inception


class Extractor(NamedTuple):
    """A network that is the same for everything that is compared.

    name: "inception-2015-12-05", or the data set's classifier with the start of its hash.
    sha256: of its weights.
    params, apply: (params, images f32[B, H, W, C] in 0..255) -> (features, logits).
    accuracy: of a classifier on the test split.
    """

    name: str
    sha256: str
    params: Any
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    accuracy: float | None = None

    @property
    def is_inception(self) -> bool:
        """Whether its numbers may be called FID, IS and KID."""
        return self.name == "inception-2015-12-05"

    def quantity(self, name: str) -> str:
        """`name` as Inception's numbers are called, under the name that this extractor's get."""
        if self.is_inception:
            return name
        other = {"fid": "fd", "is": "classifier_score", "kid": "kd"}
        first, _, rest = name.partition("_")
        return "_".join(filter(None, [other.get(first, first), rest, self.name]))


def choose_extractor(choice: str, weights: str | None, dataset: Dataset) -> str:
    """Which one `load_extractor` would load, "inception" or "classifier"; raises as it does."""
    if choice == "auto" and weights is None:
        try:
            find(None)
        except FileNotFoundError:
            choice = "classifier"
    if choice == "classifier":
        check_labels(dataset)
        return choice
    find(weights)
    return "inception"


def load_extractor(choice: str, weights: str | None, dataset: Dataset) -> Extractor:
    """The extractor that config.evaluate.extractor chooses.

    Args:
        choice: "inception", "classifier", or "auto" for Inception where its weights are found.
        weights: path of the Inception weights; None looks where `inception_weights.find` says.

    Raises:
        ValueError: for a data set without labels where a classifier is asked.
        FileNotFoundError: for Inception weights that are asked for and missing.
    """
    if choose_extractor(choice, weights, dataset) == "inception":
        params, sha256 = load_inception(weights)
        return Extractor("inception-2015-12-05", sha256, params, inception.extract)
    trained = load_classifier(dataset)
    network = Classifier(dataset.num_classes or 0)

    def apply(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs: Any = network.apply({"params": params}, images)
        return outputs

    name = f"{dataset.name.split('/')[0]}-cnn-{trained.sha256[:8]}"
    return Extractor(name, trained.sha256, trained.params, apply, trained.accuracy)


class Features(NamedTuple):
    """Of a set of images, in its order."""

    features: np.ndarray  # f32[N, D]
    logits: np.ndarray  # f32[N, K]


def make_feature_fn(
    extractor: Extractor, mesh: Mesh
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """images [B, H, W, C] in 0..255, any dtype -> (features, logits); compiled, B over devices."""
    everywhere = devices.replicated(mesh)
    params = devices.put_global(jax.tree.map(np.asarray, extractor.params), everywhere)
    compiled = devices.jit(
        lambda params, images: extractor.apply(params, images.astype(jnp.float32)),
        precision=devices.REPORTED,
        in_shardings=(everywhere, devices.sharded(mesh)),
        out_shardings=everywhere,
    )
    return lambda images: compiled(params, images)


def features_of(
    feature_fn: Callable[[Any], tuple[jax.Array, jax.Array]],
    read: Callable[[int, int], np.ndarray],
    count: int,
    batch_size: int,
    mesh: Mesh,
) -> Features:
    """Features of images 0 .. count - 1, read as read(start, stop), in batches of one size.

    The size is at most `batch_size` and shares the images out evenly, so that 256 images in batches
    of at most 250 are two of 128 and not two of 250.
    """
    batches = -(-count // batch_size)
    size = min(batch_size, devices.round_up(-(-count // batches), mesh))
    parts = []
    for first in console.track(range(0, count, size), "features"):
        images = read(first, min(first + size, count))
        padding = [(0, size - len(images))] + [(0, 0)] * 3
        images = devices.put_global(np.pad(images, padding), devices.sharded(mesh))
        found = devices.fetch(feature_fn(images))
        parts.append([value[: min(size, count - first)] for value in found])
    return Features(*(np.concatenate(values) for values in zip(*parts, strict=True)))
