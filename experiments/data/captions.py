"""Captions as numbers: words of the names of pictures, and a source that has them for labels."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.data.dataset import (
    FIRST_WORD,
    Dataset,
    FileFacts,
    Source,
    Tokenizer,
    files_of,
    gather,
    words_of,
)
from experiments.data.emoji_names import spelled
from experiments.lookup import suggestion

SHOWN = 60  # characters of a prompt in a message
TOLD = 10  # lines about prompts


def vocabulary_of(texts: Iterable[str]) -> str:
    """Every word of the texts once, in alphabetical order, separated by spaces."""
    return " ".join(sorted({word for text in texts for word in words_of(text)}))


def make_tokenizer(vocabulary: str, length: int) -> Tokenizer:
    """Of a `vocabulary_of` some texts."""
    words = vocabulary.split()
    return Tokenizer({word: FIRST_WORD + i for i, word in enumerate(words)}, length)


def prompt_rows(tokenizer: Tokenizer, prompts: Sequence[str]) -> Int[np.ndarray, "n l"]:
    """The rows of what a person asks for; "" is no caption.

    Raises:
        ValueError: for any other prompt of which no word is known, and for none at all.
    """
    if not prompts:
        raise ValueError("there is no prompt: give one at least, such as 'red apple'.")
    for prompt in prompts:
        words = words_of(prompt)
        if not prompt or not tokenizer.words.keys().isdisjoint(words):
            continue
        if not words:
            raise ValueError(
                f"there is no word in the prompt {shown(prompt)!r}: write some, such as 'red "
                "apple', or leave it empty, '', for a picture of nothing in particular."
            )
        hints = suggestion(words[0][:SHOWN], tokenizer.words).split("Choose one of")[0].strip()
        raise ValueError(
            f"no word of the prompt {shown(prompt)!r} is known. {hints or 'Choose others.'} The "
            f"model knows the {len(tokenizer.words):,} words of the captions that it was trained "
            "on (text.vocabulary in its config.json)."
        )
    return tokenizer.rows(prompts)


def prompt_remarks(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Lines for the user: which words of prompts are not known, or beyond the length."""
    found = []
    for prompt in dict.fromkeys(prompts):
        words = words_of(prompt)
        unknown = list(dict.fromkeys(word for word in words if word not in tokenizer.words))
        if unknown:
            listed = shown(", ".join(unknown))
            found.append(f"the prompt {shown(prompt)!r}: {listed} not known, and left out")
        if sum(word in tokenizer.words for word in words) > tokenizer.length - 1:
            found.append(f"the prompt {shown(prompt)!r} is cut after {tokenizer.length - 1} words")
    more = [f"{len(found) - TOLD} more such lines are left out"] if len(found) > TOLD else []
    return [f"WARNING   {line}" for line in found[:TOLD] + more]


def shown(text: str) -> str:
    """The text as a message has it: its beginning, where it is long."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def split_prompts(text: str) -> list[str]:
    """Prompts separated by semicolons, or where there is none by commas; emoji by their names."""
    parts = text.split(";" if ";" in text else ",")
    return [spelled(part.strip()) for part in parts if part.strip()]


def stands_for_split(prompts: str) -> bool:
    """True of a text such as "@test", which is no prompt itself."""
    return prompts.strip().startswith("@")


def captions_of_split(dataset: Dataset, prompts: str) -> list[str]:
    """The captions that "@train" or "@test" stands for.

    Raises:
        ValueError: for a split that is none.
        FileNotFoundError: where the data set is missing.
    """
    source: Any = dataset.open(prompts.strip().removeprefix("@"))
    return [source.text(index) for index in range(len(source))]


class Captioned:
    """A source whose labels are the rows of its captions; picklable where the source is.

    The source has `text(index)`, the caption of an image.
    """

    def __init__(self, source: Any, tokenizer: Tokenizer):
        self.source = source
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        [row] = self.tokenizer.rows([self.source.text(index)])
        return {"image": self.source[index]["image"], "label": row}

    def gather(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several at once: {"image": uint8[N, H, W, C], "label": int32[N, length]}."""
        rows = self.tokenizer.rows([self.source.text(index) for index in indices])
        return {"image": gather(self.source, indices)["image"], "label": rows}

    def files(self) -> list[FileFacts]:
        """Those of the source."""
        return files_of(self.source)


def captioned(open_split: Callable[[str], Source], tokenizer: Tokenizer) -> Callable[[str], Source]:
    """Opens a split with captions for labels."""
    return lambda split: Captioned(open_split(split), tokenizer)
