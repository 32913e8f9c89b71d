"""What a network is told beside x_t and t, and how: nothing, a class, or a caption."""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion.networks.text import TextSettings
from experiments.data.captions import make_tokenizer
from experiments.data.dataset import PAD, START, Dataset, Tokenizer
from experiments.lookup import choose, lookup

Inputs = dict[str, jax.Array]


class Condition(NamedTuple):
    """The labels of a method's examples as its network takes them.

    num_classes: of class labels; 0 where there are none.
    tokenizer: of captions; None where there are none.
    text: of the network's text encoder, None likewise.
    """

    num_classes: int = 0
    tokenizer: Tokenizer | None = None
    text: TextSettings | None = None

    def inputs(self, labels: jax.Array) -> Inputs:
        """Of the network."""
        if self.tokenizer is not None:
            return {"tokens": labels}
        return {"labels": labels} if self.num_classes else {}

    def without(self, inputs: Inputs) -> Inputs:
        """Inputs that tell nothing: the null class, or no caption."""
        if self.tokenizer is None:
            return {"labels": jnp.full_like(inputs["labels"], self.num_classes)}
        return {"tokens": jnp.full_like(inputs["tokens"], PAD).at[:, 0].set(START)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the label of one example."""
        return () if self.tokenizer is None else (self.tokenizer.length,)


def words(
    *,
    vocabulary: str,
    length: int = 16,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    dropout: float = 0.1,
) -> Condition:
    """Captions, word by word; the options are those of `TextSettings`."""
    tokenizer = make_tokenizer(vocabulary, length)
    text = TextSettings(tokenizer.size, length, width, depth, num_heads, dropout)
    return Condition(tokenizer=tokenizer, text=text)


# name -> (**options) -> Condition on captions
TEXTS: MappingProxyType[str, Any] = MappingProxyType({"none": Condition, "words": words})


def condition_of(config: ConfigDict, dataset: Dataset) -> Condition:
    """What config.text and config.model.class_conditional ask for.

    Raises:
        ValueError: where the data set has no such thing, or both are asked for.
    """
    if choose(TEXTS, config.text.name, "text.name") is words and not dataset.has_captions:
        raise ValueError(
            f"config.text.name = {config.text.name!r} needs captions, which {dataset.name!r} does "
            "not have. Choose the data set emoji, or config.text.name = 'none'."
        )
    found: Condition = lookup(TEXTS, config.text, "text", ("num_classes", "tokenizer", "text"))()
    if not config.model.get("class_conditional", False):
        return found
    if found.tokenizer is not None:
        raise ValueError(
            "config.model.class_conditional = True and config.text are two conditions: choose one."
        )
    if dataset.num_classes is None:
        raise ValueError(
            f"config.model.class_conditional is True, but {dataset.name!r} has no labels. "
            "Set it to False, or choose a data set with classes."
        )
    return Condition(num_classes=dataset.num_classes)
