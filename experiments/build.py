"""From a config to an experiment: all that a run is, before anything is computed."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.configs import base, by_size, ranges
from experiments.data.captions import captioned, vocabulary_of
from experiments.data.dataset import Dataset
from experiments.data.datasets import DATASETS
from experiments.experiment import Experiment
from experiments.lookup import lookup
from experiments.methods import diffusion, latent, vae
from experiments.methods.latent import ENCODERS
from experiments.methods.method import Encoder, Method, chain_of
from experiments.optimizers import CLIPS, OPTIMIZERS

# Dotted fields and subtrees that a method heeds and not every other; the others refuse them where
# they were changed, and it needs those that are whole sections. One that is not here may heed all.
HEEDS = MappingProxyType({"diffusion": diffusion.HEEDS, "vae": vae.HEEDS})
# Values of before a field was what it is, with which it asks for nothing either.
FORMER = MappingProxyType({"sample.spacing": {"name": "uniform"}})
EXAMPLES = MappingProxyType({"diffusion": "digits.py", "vae": "vae_digits.py"})
BOUND = "bpd_fast"  # of validations
# name -> (config, dataset, encoder) -> Method
METHODS: MappingProxyType[str, Any] = MappingProxyType(
    {"diffusion": diffusion.diffusion, "vae": vae.vae}
)


def build(
    config: ml_collections.ConfigDict, check: Callable[[Experiment], None] = lambda experiment: None
) -> Experiment:
    """The experiment that `config` describes; what it leaves open is filled in.

    Args:
        check: refuses more than this function does; called before latents are measured.

    Raises:
        ValueError: for a value out of its range, an unknown name, a missing or stale keyword, an
            impossible size, or a combination of choices that has no meaning; before anything is
            compiled.
    """
    config = by_size.fill(config)
    ranges.check(config)
    dataset = lookup(DATASETS, config.data, "data")()
    config = with_classes(config, dataset)
    dataset = lookup(DATASETS, config.data, "data")()
    config = with_vocabulary(config, dataset)
    experiment = _experiment(config, dataset)
    check(experiment)
    measured = latent.fill(config, dataset)
    return experiment if measured is config else _experiment(measured, dataset)


def _experiment(config: ml_collections.ConfigDict, dataset: Dataset) -> Experiment:
    """The experiment of a filled config, but for latents that may not be measured yet."""
    encoder = lookup(ENCODERS, config.encoder, "encoder")(dataset)
    method = _method(config, dataset, encoder)
    _check_balance(config.train.balance, dataset)
    optimizer = lookup(OPTIMIZERS, config.optimizer, "optimizer")()
    gradients = lookup(CLIPS, config.clip, "clip")()
    _check_validation(config, encoder, method)
    jax.eval_shape(lambda: _one_loss(method, encoder.shape))  # refuses what has no meaning
    opener = dataset.open
    if method.tokenizer is not None:
        opener = captioned(opener, method.tokenizer)
    return Experiment(config, dataset, opener, encoder, method, optimizer, gradients)


def _method(config: ml_collections.ConfigDict, dataset: Dataset, encoder: Encoder) -> Method:
    """The method of config.method; refuses a config that lacks what it needs, or asks in vain."""
    make = lookup(METHODS, config.method, "method")
    name = config.method.name
    process = {"schedule", "path"}  # one of the two
    has = {*config, *(process if process & {*config} else {"path"})}
    needed = [field for field in HEEDS.get(name, ()) if "." not in field]
    lacking = [section for section in needed if section not in has]
    if lacking:
        raise ValueError(
            f"config.method.name = {name!r} needs config.{', config.'.join(lacking)}, which this "
            "config does not have: begin with one of that method, such as "
            f"experiments/configs/{EXAMPLES[name]}."
        )
    _check_heeded(config)
    made: Method = make(config, dataset, encoder)
    return made


def _check_heeded(config: ml_collections.ConfigDict) -> None:
    """Refuses what was changed from `base` and another method heeds, since this one would not."""
    name, content, defaults = config.method.name, config.to_dict(), base.get_config().to_dict()
    if name not in HEEDS:
        return
    for other, fields in HEEDS.items():
        for field in fields:
            value, default = _field(content, field), _field(defaults, field)
            if field in HEEDS[name] or value in (None, default, FORMER.get(field)):
                continue
            neutral = "out" if default is None else f"at {default}"
            raise ValueError(
                f"config.{field} = {value} is not heeded by config.method.name = {name!r}, but by "
                f"{other!r}. Leave it {neutral}."
            )


def _field(content: Any, field: str) -> Any:
    """The value of a dotted field, or None."""
    for name in field.split("."):
        content = content.get(name, {})
    return None if content == {} else content


def with_vocabulary(config: ml_collections.ConfigDict, dataset: Dataset) -> Any:
    """The config with the words of the train split's captions, where it is to be told of some.

    Raises:
        FileNotFoundError: where the data set is missing.
    """
    text = config.get("text", {})
    if text.get("name") != "words" or text.get("vocabulary") or not dataset.has_captions:
        return config
    source: Any = dataset.open("train")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.text.vocabulary = vocabulary_of(source.text(index) for index in range(len(source)))
    return config


def with_classes(config: ml_collections.ConfigDict, dataset: Dataset) -> Any:
    """The config with the names of the classes, where it has some and the images are there.

    Raises:
        ValueError: for other classes than the config says.
    """
    if dataset.find_classes is None:
        return config
    try:
        names = dataset.find_classes()
    except FileNotFoundError:  # who needs the images says so
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.classes = names
    return config


def _check_balance(balance: str, dataset: Dataset) -> None:
    """Refuses to draw evenly what the images of a data set do not have."""
    has = {
        "images": True,
        "labels": dataset.num_classes is not None,
        "subjects": dataset.subject_of is not None,
    }
    if not has[balance]:
        allowed = " or ".join(repr(name) for name, one in has.items() if one)
        raise ValueError(
            f"config.train.balance = {balance!r}: the images of {dataset.name!r} have no "
            f"{balance}. Choose {allowed}."
        )


def _check_validation(config: ml_collections.ConfigDict, encoder: Encoder, method: Method) -> None:
    """Refuses to choose a checkpoint by a number that the method does not have."""
    train = config.train
    if not train.validate_every or train.validate_with != BOUND:
        return
    if encoder.latents is not None:
        raise ValueError(
            f"config.train.validate_with = {BOUND!r} is of pixels, and this model is of latents: "
            "choose 'samples', or config.train.validate_every = 0."
        )
    chain_of(method, f"config.train.validate_with = {BOUND!r}")


def _one_loss(method: Method, shape: tuple[int, ...]) -> jax.Array:
    """The loss of one example of zeros, to be traced only."""
    x_0, key = jnp.zeros((1, *shape)), jax.random.key(0)
    length = () if method.tokenizer is None else (method.tokenizer.length,)
    labels = jnp.zeros((1, *length), jnp.int32)
    examples = method.draw(method.memory(), x_0, labels, lambda name: jax.random.split(key, 1))
    return method.losses(method.init(key), examples, key)[0]
