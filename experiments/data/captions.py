"""Captions as numbers: words of the names of pictures, and a source that has them for labels."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments import console
from experiments.data.dataset import (
    FIRST_WORD,
    FileFacts,
    Source,
    Tokenizer,
    files_of,
    gather,
    words_of,
)
from experiments.lookup import suggestion


def vocabulary_of(texts: Iterable[str]) -> str:
    """Every word of the texts once, in alphabetical order, separated by spaces."""
    return " ".join(sorted({word for text in texts for word in words_of(text)}))


def make_tokenizer(vocabulary: str, length: int) -> Tokenizer:
    """Of a `vocabulary_of` some texts."""
    words = vocabulary.split()
    return Tokenizer({word: FIRST_WORD + i for i, word in enumerate(words)}, length)


def prompt_rows(tokenizer: Tokenizer, prompts: Sequence[str]) -> Int[np.ndarray, "n l"]:
    """The rows of what a person asks for; tells which words are not known, or beyond the length.

    Raises:
        ValueError: for a prompt of which no word is known, and for none at all.
    """
    if not prompts:
        raise ValueError("there is no prompt: give one at least, such as 'red apple'.")
    for prompt in prompts:
        words = words_of(prompt)
        unknown = [word for word in words if word not in tokenizer.words]
        if words and len(unknown) == len(words):
            hints = suggestion(unknown[0], tokenizer.words).split("Choose one of")[0].strip()
            raise ValueError(
                f"no word of the prompt {prompt!r} is known. {hints or 'Choose others.'} The model "
                f"knows the {len(tokenizer.words):,} words of the captions that it was trained on "
                "(text.vocabulary in its config.json)."
            )
        if unknown:
            console.log(
                f"WARNING   the prompt {prompt!r}: {', '.join(unknown)} not known, and left out"
            )
        if len(words) - len(unknown) > tokenizer.length - 1:
            console.log(
                f"WARNING   the prompt {prompt!r} is cut after {tokenizer.length - 1} words"
            )
    return tokenizer.rows(prompts)


def split_prompts(text: str) -> list[str]:
    """Prompts separated by semicolons, or where there is none by commas."""
    parts = text.split(";" if ";" in text else ",")
    return [part.strip() for part in parts if part.strip()]


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
