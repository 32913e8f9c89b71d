"""A small classifier of each labelled data set, whose features stand in for Inception's.

It is trained on first use by a fixed recipe and kept. Its numbers compare models of one data set
with each other and with nothing else: they are named after it and its hash, and are not FID.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, Float

from diffusion.networks.layers import conv_general_dilated
from experiments import console, devices
from experiments.data.dataset import (
    Dataset,
    InMemory,
    Source,
    fingerprint,
    load_in_memory,
    read_images,
)
from experiments.files.tensors import cache_folder, read_npz, write_npz, write_tensors


class Recipe(NamedTuple):
    """All that decides the weights, but for the data and the arithmetic of the machine."""

    version: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


RECIPE = Recipe()
KEPT_EVERY = 100  # steps, after which what an interruption would lose is written down


def _convolution(features: int, name: str, stride: int) -> nn.Conv:
    """3x3, of its own: another initialisation of the U-Net's must change no distance."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding="SAME",
        kernel_init=nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


class Classifier(nn.Module):
    """Convolutions down to a few pixels, their mean as features, and one linear map to logits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[jax.Array, jax.Array]:
        channels = RECIPE.channels
        x = x / 127.5 - 1.0
        for i in range(8):
            width = channels[min(i, len(channels) - 1)]
            stride = 2 if i > 0 and min(x.shape[1:3]) > 4 else 1
            x = _convolution(width, f"conv_{i}", stride)(x)
            x = nn.swish(nn.GroupNorm(8, name=f"norm_{i}")(x))
            if i > 1 and min(x.shape[1:3]) <= 4:
                break
        features = x.mean((1, 2))
        return features, nn.Dense(self.num_classes, name="logits")(features)


class Trained(NamedTuple):
    """A trained classifier.

    params: of Classifier.
    sha256: of the parameters' names and bytes, hexadecimal.
    accuracy: on the test split, in [0, 1].
    """

    params: Any
    sha256: str
    accuracy: float


def _digest(params: Any) -> str:
    digest = hashlib.sha256()
    for path, value in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(path.encode() + np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()


def _fit(network: Classifier, source: InMemory, partial: Path) -> Any:
    """Adam under a cosine, cross-entropy, epochs in an order that the recipe's seed decides.

    Args:
        partial: where it is kept on the way, to go on from there after an interruption.
    """
    steps, batch_size = RECIPE.steps, RECIPE.batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(RECIPE.learning_rate, steps))

    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            _, logits = network.apply({"params": params}, images.astype(jnp.float32))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    train_step = devices.jit(step, precision=devices.REPORTED)
    init = devices.jit(network.init, precision=devices.REPORTED)
    key = jax.random.key(RECIPE.seed)
    params = init(key, jnp.zeros((1, *source.images.shape[1:])))["params"]
    state = optimizer.init(params)
    draw = np.random.Generator(np.random.PCG64(RECIPE.seed))
    order = np.concatenate(
        [draw.permutation(len(source)) for _ in range(-(-steps * batch_size // len(source)))]
    )
    done, (params, state) = _resumed(partial, (params, state))
    for i in console.track(range(done, steps), "training a classifier"):
        if i > done and i % KEPT_EVERY == 0 and devices.is_main_process():
            leaves = jax.device_get(jax.tree.leaves((params, state)))
            write_npz(partial, {"step": np.array(i), **{f"{k}": x for k, x in enumerate(leaves)}})
        batch = source.gather(order[i * batch_size : (i + 1) * batch_size].tolist())
        params, state = train_step(params, state, batch["image"], batch["label"])
    return jax.device_get(params)


def _resumed(partial: Path, fresh: Any) -> tuple[int, Any]:
    """The step and the state of a training that was interrupted, or 0 and the fresh state.

    Processes have to agree: where one has no such file, all begin anew.
    """
    step, leaves = 0, jax.device_get(jax.tree.leaves(fresh))
    with contextlib.suppress(OSError, ValueError, KeyError):
        arrays = read_npz(partial)
        kept = [arrays[f"{k}"] for k in range(len(leaves))]
        if [x.shape for x in kept] == [x.shape for x in leaves]:
            step, leaves = int(arrays["step"]), kept
    if not devices.all_agree(step > 0):
        return 0, fresh
    step, leaves = devices.from_main((np.array(step), leaves))
    console.log(f"resuming  the training of a classifier at step {int(step):,} of {RECIPE.steps:,}")
    return int(step), jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _accuracy(network: Classifier, params: Any, test: Source) -> float:
    apply = devices.jit(
        lambda images: network.apply({"params": params}, images.astype(jnp.float32))[1],
        precision=devices.REPORTED,
    )
    right, size = 0, 250
    for start in console.track(range(0, len(test), size), "testing it"):
        batch = read_images(test, start, min(start + size, len(test)))
        right += int((np.argmax(apply(batch["image"]), axis=1) == batch["label"]).sum())
    return right / len(test)


def check_labels(dataset: Dataset) -> int:
    """The number of classes; raises ValueError where there is no label to train a classifier on."""
    if dataset.num_classes is None:
        raise ValueError(
            f"{dataset.name!r} has no labels, so that no classifier can be trained on it; sample "
            "metrics need the Inception weights here (config.evaluate.inception_weights)."
        )
    return dataset.num_classes


def load_classifier(dataset: Dataset) -> Trained:
    """The classifier of a data set, trained on its train split unless the cache holds it.

    Every process of a run trains one where none is kept, and all of them use the main process's.

    Raises:
        ValueError: for a data set without labels, and for a damaged file.
        FileNotFoundError: if the data is missing.
    """
    num_classes = check_labels(dataset)
    train = dataset.open("train")
    facts = {"data": fingerprint(dataset.name, train), "recipe": RECIPE._asdict()}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "classifiers" / f"{dataset.name.replace('/', '_')}-{name}.safetensors"
    if devices.all_agree(path.is_file()):
        try:
            with safetensors.safe_open(path, "numpy") as stored:
                accuracy = float(stored.metadata()["accuracy"])
            tensors = safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, where this program kept a classifier, is damaged; delete it. ({error})"
            ) from error
        params = devices.from_main(traverse_util.unflatten_dict(tensors, sep="/"))
        return Trained(params, _digest(params), accuracy)
    network = Classifier(num_classes)
    partial = path.with_suffix(".partial.npz")
    params = devices.from_main(_fit(network, load_in_memory(train), partial))
    accuracy = _accuracy(network, params, dataset.open("test"))
    if devices.is_main_process():
        flat = traverse_util.flatten_dict(params, sep="/")
        write_tensors(path, flat, {"accuracy": repr(accuracy), "facts": json.dumps(facts)})
        partial.unlink(missing_ok=True)
    return Trained(params, _digest(params), accuracy)
