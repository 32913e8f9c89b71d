"""Weights of other programs into a working directory, and a run of this one out of it.

    python -m experiments.convert --from=hf:google/ddpm-cifar10-32 --to=runs/published
    python -m experiments.convert --from=runs/digits --to=diffusers --out=exported/digits

In: diffusers folders, the original's TensorFlow checkpoints (or an npz of one), PyTorch state
dictionaries under the original's names, safetensors. The result is sampled, evaluated and trained
further like any run. Out: a folder that diffusers' DDPMPipeline.from_pretrained opens.
"""

import sys

from experiments import console

if __name__ == "__main__":
    console.watch_signals()  # before the imports, which take seconds

import os
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from experiments import command_line
from experiments.build import build
from experiments.configs import saved
from experiments.weights import export
from experiments.weights.importer import import_weights
from experiments.workdir.checkpoint import CheckpointError
from experiments.workdir.config import read_config
from experiments.workdir.origin import EMA, RAW

FROM = flags.DEFINE_string("from", None, "What to read: a path, or hf:ORGANISATION/MODEL.")
TO = flags.DEFINE_string("to", None, "The working directory to write, or `diffusers`.")
OUT = flags.DEFINE_string("out", None, "With --to=diffusers, the folder to write.")
WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    [EMA, RAW],
    "Which of two sets to take, ema if left out; or what a single set is, where you know.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The data set and all that the weights do not say; left out, found by name."
)
STEP = flags.DEFINE_integer(
    "step",
    None,
    "Training steps behind the weights, where the source does not say.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)


def convert() -> None:
    """Does what the flags say.

    Raises:
        ValueError: for flags that do not go together; see also the functions that it calls.
    """
    source, out = os.path.expanduser(str(FROM.value)), OUT.value
    outwards = TO.value == "diffusers"
    wrong = (CONFIG, STEP) if outwards else (OUT,)
    given = [f"--{flag.name}" for flag in wrong if flag.value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} goes with "
            + ("a working directory as --to." if outwards else "--to=diffusers only.")
        )
    if not outwards:
        workdir = Path(os.path.expanduser(str(TO.value)))
        return import_weights(source, workdir, CONFIG.value, STEP.value, WEIGHTS.value)
    if out is None:
        raise ValueError("--to=diffusers needs --out=FOLDER, where to write.")
    config = read_config(source)
    if "method" not in config:
        raise ValueError(f"--from={source} is no working directory of this program.")
    config = saved.with_own_autoencoder(source, saved.complete(config))
    folder = Path(os.path.expanduser(out))
    return export.write_diffusers(build(config), Path(source), folder, WEIGHTS.value or EMA)


def main(argv: list[str]) -> int:
    """Converts; an error that the user can mend becomes one message."""
    if len(argv) > 1:
        return command_line.fail(f"unexpected arguments {argv[1:]}: options are --name=value.")
    absl.logging.set_verbosity(absl.logging.WARNING)
    console.doing("converting", console.AGAIN)
    try:
        with console.told_when_slow("the conversion", console.SOON):
            convert()
        return 0
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        if command_line.verbose(sys.argv):
            raise
        return command_line.fail(error)


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "to"])
    app.run(main, flags_parser=command_line.parse)
