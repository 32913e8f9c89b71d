"""The program: trains, samples and evaluates what a config describes.

    python -m experiments.main --config=experiments/configs/digits.py --workdir=runs/digits

The same command continues an interrupted run. Exit status: 0 finished, 75 stopped on request and to
be started again, 76 diverged, 2 for an error that the user can mend. With --mode=sample or
--mode=evaluate and no --config the run's own config is used, and --config.FIELD=VALUE changes a
field of it. --list_ablations prints the names that may follow a config after a colon.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from diffusion import schedules
from experiments import command_line, console, devices, evaluate, sample
from experiments.build import Experiment, build
from experiments.train import train
from experiments.workdir.checkpoint import CheckpointError
from experiments.workdir.outcome import EXIT_STATUS, Outcome

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, FILE.py or FILE.py:ABLATION."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything that it writes.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "sample", "evaluate"], "train ends in config.train.finish_with."
)


flags.DEFINE_flag(command_line.ListAblations())


flags.mark_flags_as_required(["config", "workdir"])


FINISH = MappingProxyType({"sample": sample.sample, "evaluate": evaluate.evaluate})


def describe_start(experiment: Experiment) -> list[str]:
    """The start-up lines: model, chain and devices, with a warning where the chain is cut short."""
    params = jax.eval_shape(experiment.init_params, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    chain = schedules.describe(experiment.model.schedule)
    devices = jax.devices()
    config = experiment.config
    lines = [
        f"data      {experiment.dataset.name}, images {experiment.dataset.image_shape}",
        f"model     {config.model.name}, {count:,} parameters, predicts "
        f"{config.parameterization.name}, variance {config.variance.name}, loss {config.loss.name}",
        f"chain     {config.schedule.name}, T = {experiment.model.schedule.num_timesteps}, "
        f"alpha_bar_T = {chain.alpha_bar_last:.3g}, "
        f"L_T <= {chain.prior_bits_per_dim:.3g} bits/dim, "
        f"SNR {chain.snr_first:.3g} to {chain.snr_last:.3g}",
        f"devices   {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
    ]
    if chain.prior_bits_per_dim > 1e-3:
        lines.append(
            "WARNING   this chain does not end in noise: L_T is up to "
            f"{chain.prior_bits_per_dim:.3g} bits/dim and should be near 0. Samples start from "
            "N(0, I), which training then never sees. Betas for T = 1000 must be scaled up by "
            "1000 / T for another T (config.schedule.beta_start and beta_end)."
        )
    return lines


def run(experiment: Experiment, workdir: Path, modes: Sequence[str]) -> int:
    """Trains where --mode says so, then does `modes`; returns the exit status."""
    for line in describe_start(experiment):
        console.log(line)
    if MODE.value == "train":
        outcome = train(experiment, workdir)
        if outcome is not Outcome.FINISHED:
            return EXIT_STATUS[outcome]
    for mode in modes:
        FINISH[mode](experiment, workdir)
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
        if "evaluate" in modes:
            evaluate.check(experiment)
        return run(experiment, workdir, modes)
    except (ValueError, FileNotFoundError, ImportError, CheckpointError) as error:
        if command_line.verbose(sys.argv):
            raise
        return command_line.fail(error)


if __name__ == "__main__":
    jax.config.update("jax_threefry_partitionable", True)
    app.run(main, flags_parser=command_line.parse)
