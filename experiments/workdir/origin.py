"""What the weights of a checkpoint are and how it was chosen: facts of every number made with them.

Both are kept with the checkpoint. Of older ones, which say neither, they follow from the rest.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# What a set of weights is: averaged over a training, as its last step left it, or not known.
EMA, RAW, AS_PUBLISHED = KINDS = ("ema", "raw", "as published")
NOTHING = "nothing"  # that the newest checkpoint was chosen by
BOTH, ONE = "raw and EMA", "one set, taken for both"  # the sets of weights of a conversion


class Origin(NamedTuple):
    """Of weights that are sampled and evaluated, under the names that protocols have.

    weights: one of KINDS.
    selected_on: what the checkpoint was chosen by among those of its training, or NOTHING.
    held_out: how many images of the train split it was not trained on.
    """

    weights: str
    selected_on: str
    held_out: int = 0


def of_checkpoint(meta: Mapping[str, Any], results: Mapping[str, Any]) -> Origin:
    """The origin of the item `ema` of a checkpoint.

    Args:
        meta: the checkpoint's.
        results: the sections of the run's results.json; "convert" tells of an older conversion
            whether it found averaged weights.
    """
    converted = meta.get("fingerprint") is None
    known = not converted or results.get("convert", {}).get("weights") == BOTH
    weights = meta.get("weights", EMA if known else AS_PUBLISHED)
    selected_on = meta.get("selected_on", _selected_before(meta))
    return Origin(weights, selected_on, meta.get("held_out", 0))


def _selected_before(meta: Mapping[str, Any]) -> str:
    """What a checkpoint was chosen by that is older than the field."""
    if "validation" not in meta:
        return NOTHING
    train = meta["config"]["train"]
    if train["validate_with"] == "bpd_fast":
        return f"bits/dim of the first {train['validate_images']} test images"
    return sample_distance(train["validate_images"], train["preview_num_steps"])


def held_out_bits(num_images: int) -> str:
    """Chosen by the bound of images that nothing was trained on and nothing is reported of."""
    return f"bits/dim of {num_images} images held out of train"


def sample_distance(num_samples: int, num_steps: int) -> str:
    """Chosen by the very distance that is reported; `num_steps` of 0 is every timestep."""
    steps = f"{num_steps} steps" if num_steps else "every step"
    return f"distance of {num_samples} samples to the train split, {steps}"
