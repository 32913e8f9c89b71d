"""What is handed to a trained model in Python: arrays and numbers, checked and named in errors."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from experiments import console
from experiments.data.captions import (
    captions_of_split,
    prompt_remarks,
    prompt_rows,
    shown,
    stands_for_split,
)
from experiments.data.emoji_names import spelled
from experiments.experiment import Experiment

Image = UInt8[np.ndarray, "n h w c"]
Latent = Float[np.ndarray, "n ..."]
# Fields of config.sample -> the arguments that set them.
ARGUMENTS = MappingProxyType(
    {
        "sampler.name": "sampler",
        "sampler": "sampler",
        "num_steps": "steps",
        "guidance_scale": "guidance",
        "labels": "labels",
        "prompts": "prompts",
    }
)
_FIELD = re.compile(rf"(?:--)?config\.sample\.({'|'.join(map(re.escape, ARGUMENTS))})\b")


@contextlib.contextmanager
def in_own_words() -> Iterator[None]:
    """Has the ValueError of a config speak of the arguments that set its fields."""
    try:
        yield
    except ValueError as error:
        words = _FIELD.sub(lambda found: ARGUMENTS[found[1]], str(error))
        raise ValueError(words) from error


def images_of(experiment: Experiment, pictures: Any) -> Image:
    """uint8 images of the data set's shape; raises ValueError for anything else."""
    shape, found = experiment.dataset.image_shape, np.asarray(pictures)
    if found.dtype != np.uint8 or found.shape[1:] != shape or not len(found):
        raise ValueError(
            f"images must be uint8[n, {', '.join(map(str, shape))}], with n at least 1, not "
            f"{found.dtype}{list(found.shape)}."
        )
    return found


def latents_of(experiment: Experiment, x: Any, name: str) -> Latent:
    """float32 of what the method models, finite; raises ValueError for anything else."""
    shape, found = experiment.encoder.shape, np.asarray(x)
    real = np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer)
    if not real or found.shape[1:] != shape or not len(found):
        raise ValueError(
            f"{name} must be float32[n, {', '.join(map(str, shape))}], with n at least 1, not "
            f"{found.dtype}{list(found.shape)}."
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds {np.sum(~np.isfinite(found))} values that are not finite.")
    return found.astype(np.float32)


def captions_of(experiment: Experiment, texts: Sequence[str]) -> Int[np.ndarray, "n l"]:
    """Rows of captions, an empty text being none; raises ValueError where that cannot be.

    Emoji are spelled out; words that are not known are told.
    """
    tokenizer = experiment.method.tokenizer
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"prompts must be texts, not {shown(repr(text))}.")
        if tokenizer is None:
            raise ValueError(f"this model is told no captions, and was asked for {shown(text)!r}.")
        if not text and not experiment.method.null_class:
            raise ValueError("this model was trained with captions only: give prompts.")
    assert tokenizer is not None  # or there are no texts
    read = [spelled(text) for text in texts]
    rows = prompt_rows(tokenizer, read)
    console.log_lines(prompt_remarks(tokenizer, read))
    return rows


def captions_asked(
    experiment: Experiment, prompts: str | Sequence[str]
) -> Int[np.ndarray, "n ..."]:
    """Rows of captions for one prompt or several, or "@test"; no row where a model is told none.

    Raises:
        ValueError, FileNotFoundError: as `captions_of` and `captions_of_split`.
    """
    tokenizer = experiment.method.tokenizer
    if tokenizer is not None and isinstance(prompts, str) and stands_for_split(prompts):
        return tokenizer.rows(captions_of_split(experiment.dataset, prompts))
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if tokenizer is None and not texts:
        return np.zeros(0, np.int32)
    return captions_of(experiment, texts or [""])


def labels_of(
    experiment: Experiment, labels: Sequence[Any] | None, count: int
) -> Int[np.ndarray, "n ..."]:
    """Classes or captions, one an image; raises ValueError for what the model is not told."""
    method = experiment.method
    if method.tokenizer is not None:
        texts = [""] * count if labels is None else list(labels)
        if len(texts) != count:
            raise ValueError(f"labels must be {count} captions, one an image, or None.")
        return captions_of(experiment, texts)
    if not method.num_classes:  # which heeds none, whatever the data set has
        return np.zeros(count, np.int32)
    most = method.num_classes - 1 + method.null_class
    if labels is None and method.null_class:
        return np.full(count, method.num_classes, np.int32)
    found = np.asarray([] if labels is None else labels)
    whole = np.issubdtype(found.dtype, np.integer) and found.shape == (count,)
    if not whole or found.min() < 0 or found.max() > most:
        raise ValueError(
            f"this model is class-conditional: labels must be {count} whole numbers from 0 to "
            f"{most}, one an image, not {labels!r}."
        )
    return found.astype(np.int32)


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number within limits; raises ValueError for anything else."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} = {value!r} must be a whole number {limits}.")
    return int(value)


def real(value: Any, name: str) -> float:
    """A number; raises ValueError for anything else, "2" and True among it."""
    if not isinstance(value, bool | str):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise ValueError(f"{name} = {value!r} must be a number.")


def refuse_ignored(why: str, **arguments: Any) -> None:
    """Raises ValueError for an argument that is given and would change nothing."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} = {shown(str(value))!r}: {why}. Leave it out.")
