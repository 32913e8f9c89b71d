"""What the weights of a checkpoint are and how it was chosen: facts of every number made with them.

Both are kept with the checkpoint. Of older ones, which say neither, they follow from the rest.
"""

from collections.abc import Mapping
from pathlib import Path
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


class Loaded(NamedTuple):
    """Parameters of a checkpoint."""

    step: int
    params: Any
    origin: Origin


class Ancestor(NamedTuple):
    """Another run, with whose weights a training is to begin.

    run: its working directory, as it was named.
    checkpoint: its step, "latest", "best", or "auto", the newest that is not damaged.
    optimizer: whether the state of its optimizer is taken over as well.
    """

    run: str
    checkpoint: int | str = "auto"
    optimizer: bool = False

    @property
    def named(self) -> str:
        """As the command line has it."""
        which = "" if self.checkpoint == "auto" else f":{self.checkpoint}"
        return f"--from={self.run}{which}" + " --from_optimizer" * self.optimizer


def parse_ancestor(value: str, optimizer: bool) -> Ancestor | None:
    """The run that --from=RUN or --from=RUN:CHECKPOINT names; None where it names none.

    Raises:
        ValueError: for a checkpoint that can be none, and for an optimizer's state of no run.
    """
    if not value:
        if optimizer:
            raise ValueError("--from_optimizer goes with --from=RUN, whose optimizer it is of.")
        return None
    run, colon, checkpoint = value.rpartition(":")
    if not colon or Path(value).expanduser().is_dir():
        return Ancestor(value, "auto", optimizer)
    if checkpoint.isascii() and checkpoint.isdigit() and run:
        return Ancestor(run, int(checkpoint), optimizer)
    if checkpoint not in ("auto", "latest", "best") or not run:
        raise ValueError(
            f"--from={value} must be the working directory of a run, or RUN:CHECKPOINT with a "
            "step, latest or best, such as runs/digits:4000."
        )
    return Ancestor(run, checkpoint, optimizer)


def check_ancestor(meta: Mapping[str, Any], asked: Ancestor, workdir: Path) -> None:
    """Refuses to go on with a run that did not begin as it is asked to begin now.

    Args:
        meta: of a checkpoint of the run in `workdir`.

    Raises:
        ValueError: saying what it began with, and what can be done.
    """
    known = meta.get("origin")
    if known is None:
        began = "did not begin with the weights of another run"
    else:
        with_it = "with" if known["optimizer"] else "without"
        began = f"began with those of {known['run']}, step {known['step']:,}, {with_it} optimizer"
        there, here = (Path(run).expanduser().resolve() for run in (known["run"], asked.run))
        step = isinstance(asked.checkpoint, str) or asked.checkpoint == known["step"]
        if there == here and step and asked.optimizer == known["optimizer"]:
            return
    raise ValueError(
        f"{workdir} holds a run that {began}, and {asked.named} asks for others. Leave --from and "
        "--from_optimizer out to go on with that run, or choose another --workdir."
    )


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
