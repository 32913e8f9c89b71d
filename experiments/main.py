"""The program: trains, samples and evaluates what a config describes.

    python -m experiments.main --config=experiments/configs/digits.py --workdir=runs/digits

The same command continues an interrupted run. Exit status: 0 finished, 75 stopped on request and to
be started again, 76 diverged, 2 for an error that the user can mend. With --mode=sample or
--mode=evaluate and no --config the run's own config is used, and --config.FIELD=VALUE changes a
field of it. --list_ablations prints the names that may follow a config after a colon.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from experiments import command_line, console, devices, evaluate, sample
from experiments.build import Experiment, build
from experiments.hooks import train_with_hooks
from experiments.state import load_ema
from experiments.workdir.checkpoint import CheckpointError, Loaded
from experiments.workdir.outcome import EXIT_STATUS, Outcome


class Mode(NamedTuple):
    """What follows a training, or stands alone.

    check: refuses a config that `run` would fail on, before anything is computed.
    """

    check: Callable[[Experiment], None]
    run: Callable[[Experiment, Path, Loaded], Any]


MODES = MappingProxyType(
    {
        "sample": Mode(sample.check, sample.sample),
        "evaluate": Mode(evaluate.check, evaluate.evaluate),
    }
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, FILE.py or FILE.py:ABLATION."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything that it writes.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", *MODES], "train ends in config.train.finish_with."
)
flags.DEFINE_flag(command_line.ListAblations())
flags.mark_flags_as_required(["config", "workdir"])


def describe_start(experiment: Experiment) -> list[str]:
    """The start-up lines: data, method and devices."""
    devices = jax.devices()
    return [
        f"data      {experiment.dataset.name}, images {experiment.dataset.image_shape}",
        *experiment.method.description,
        f"devices   {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
    ]


def run(experiment: Experiment, workdir: Path, modes: Sequence[str]) -> int:
    """Trains where --mode says so, then does `modes`; returns the exit status."""
    for line in describe_start(experiment):
        console.log(line)
    if MODE.value == "train":
        outcome = train_with_hooks(experiment, workdir)
        if outcome is not Outcome.FINISHED:
            return EXIT_STATUS[outcome]
    if modes:
        loaded = load_ema(experiment, workdir, devices.make_mesh())
        for mode in modes:
            MODES[mode].run(experiment, workdir, loaded)
    return 0


def main(argv: list[str]) -> int:
    """Builds and runs; an error that the user can mend becomes one message."""
    if len(argv) > 1:
        return command_line.fail(f"unexpected arguments {argv[1:]}: options are --name=value.")
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
    if "://" in str(WORKDIR.value):
        return command_line.fail(
            f"--workdir={WORKDIR.value} is no folder: name one that every process can reach, a "
            "mounted bucket for instance."
        )
    config, workdir = CONFIG.value, Path(str(WORKDIR.value)).expanduser()
    try:
        devices.initialize_distributed(config.distributed)
        experiment = build(config)
        if MODE.value == "train":
            workdir.mkdir(parents=True, exist_ok=True)
        modes = config.train.finish_with if MODE.value == "train" else (MODE.value,)
        for mode in modes:
            MODES[mode].check(experiment)
        return run(experiment, workdir, modes)
    except (ValueError, FileNotFoundError, ImportError, CheckpointError) as error:
        if command_line.verbose(sys.argv):
            raise
        return command_line.fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
