"""The figure of a model that is told captions: what it draws for each of some prompts."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.captions import shown, stands_for_split
from experiments.drawing import prompts_of
from experiments.figures.figure import DPI, Context, Figure, blank, show_picture
from experiments.figures.samples import walked

COLUMNS = 8


def names(source: Any, count: int) -> list[str]:
    """Captions of evenly spaced images of a split."""
    places = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
    return [source.text(int(place)) for place in places]


def prompts(context: Context) -> Figure:
    """One sample for each prompt, none left out: those of config.sample, or names of both splits.

    Without prompts of its own config.sample has it draw the names of eight images of the train
    split and of eight that were held out, evenly spaced.

    Raises:
        ValueError: for a model that is told no captions.
    """
    experiment = context.experiment
    tokenizer, asked = experiment.method.tokenizer, experiment.config.sample.prompts
    if tokenizer is None:
        raise ValueError("the figure `prompts` needs a model that is told captions (config.text).")
    if asked and not stands_for_split(asked):
        texts = prompts_of(experiment)
    else:
        both = [names(experiment.dataset.open(split), 8) for split in experiment.dataset.splits]
        texts = [text for part in both for text in part]
    drawn = context.samples(len(texts), labels=tokenizer.rows(texts))
    known: Any = experiment.dataset.open("train")
    trained = {known.text(index) for index in range(len(known))}
    new = np.array([text not in trained for text in texts])
    columns = min(COLUMNS, len(texts))
    rows = -(-len(texts) // columns)

    def draw(path: Path) -> None:
        canvas = blank(figsize=(1.35 * columns, 1.75 * rows))
        axes = np.atleast_1d(canvas.subplots(rows, columns, squeeze=False)).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, picture, text, unseen in zip(axes, drawn.samples, texts, new, strict=False):
            show_picture(axis, picture)
            words = textwrap.fill(shown(text), 18) + (" *" if unseen else "")
            axis.set_title(words, fontsize=7, parse_math=False)
        canvas.savefig(path, dpi=DPI)

    caption = (
        f"One sample for each of {len(texts)} prompts, the first of the seed, none left out "
        f"({walked(context)}). A star marks texts that are the name of no image that was trained "
        "on."
    )
    arrays = {"samples": drawn.samples, "prompts": np.array(texts), "held_out": new}
    return Figure("Prompts", caption, arrays, draw)
