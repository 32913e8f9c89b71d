"""The program: trains, samples and evaluates what a config describes.

    python -m experiments.main --config=experiments/configs/digits.py --workdir=runs/digits

The same command continues an interrupted run. Exit status: 0 finished, 75 stopped on request and to
be started again, 76 diverged, 2 for an error that the user can mend. With --mode=sample, evaluate
or figures and no --config the run's own config is used, and --config.FIELD=VALUE changes a field of
it. --mode=plan says what a run will need, and needs no --workdir. --list_ablations prints the names
that may follow a config after a colon, and --verbosity=1 shows where an error was raised.
"""

import sys

from experiments import console

if __name__ == "__main__":
    console.watch_signals()  # before the imports, which take seconds
    console.steady_output()
    console.check_address_space()

import contextlib
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from experiments import command_line, console, devices, evaluate, peers, sample
from experiments.configs import saved
from experiments.drawing import example_prompt, remarks_on_prompts
from experiments.experiment import Experiment
from experiments.figures.page import figures
from experiments.files.tensors import cache_folder
from experiments.hooks import train_with_hooks
from experiments.methods import latent
from experiments.metrics.metric import metric_names
from experiments.modes import CHECKS, checked
from experiments.plan import plan
from experiments.sample import Place, folder_apart
from experiments.sample_files import parse_indices
from experiments.state import Start, load_ema
from experiments.workdir.checkpoint import CheckpointError, Which
from experiments.workdir.lock import only_writer
from experiments.workdir.origin import parse_ancestor
from experiments.workdir.outcome import EXIT_STATUS, Outcome
from experiments.workdir.remote import is_unreachable, keep_at, latest_writer
from experiments.workdir.results import measured, read_results

SHOWN_CLASSES = 100  # names
MORE = 64  # samples that are proposed at the end of a training
# Errors that the user can mend.
MENDABLE = (ValueError, OSError, ImportError, CheckpointError, devices.OutOfMemory)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, FILE.py or FILE.py:ABLATION."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything that it writes.")
CHECKPOINTS = flags.DEFINE_string(
    "checkpoints",
    None,
    "gs://BUCKET/FOLDER, of this run alone, to keep checkpoints there and not in --workdir.",
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    [*CHECKS, "plan"],
    "train ends in config.train.finish_with; plan says what the run will need, and runs nothing.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Of --mode=sample and figures: where to; by default WORKDIR/samples/ and what they are of, and "
    "WORKDIR/figures.",
)
SEEDS = flags.DEFINE_string(
    "seeds",
    None,
    "Of --mode=sample: which samples, like 0-63 or 3,7,10-12, instead of the first "
    "config.sample.num_images. Sample i is the same whatever it is drawn with.",
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "auto",
    "Where compiled functions are kept: auto (the cache folder), off, or a folder.",
)
RESTORE_STEP = flags.DEFINE_string(
    "restore_step",
    "auto",
    "Which checkpoint: auto, the newest that is not damaged; latest, the newest; or a step.",
)
CONTINUE_DIVERGED = flags.DEFINE_bool(
    "continue_diverged",
    False,
    "Train on after a divergence, from the last sound checkpoint and with other settings.",
)
CONTINUE_WITH_NEW_DATA = flags.DEFINE_bool(
    "continue_with_new_data",
    False,
    "Train on although images of the train split are others now; checkpoints and results say so.",
)
FROM = flags.DEFINE_string(
    "from",
    "",
    "Begin a training with the weights of another run: its --workdir, or RUN:CHECKPOINT with a "
    "step, latest or best. What was begun so goes on by the same command.",
)
FROM_OPTIMIZER = flags.DEFINE_bool(
    "from_optimizer",
    False,
    "Of --from: take over the moments of its optimizer too.",
)
flags.DEFINE_flag(command_line.ListAblations())
flags.mark_flags_as_required(["config"])
flags.register_multi_flags_validator(
    ["workdir", "mode"],
    lambda values: values["workdir"] is not None or values["mode"] == "plan",
    "Flag --workdir must have a value other than None.",
)


def describe_start(experiment: Experiment) -> list[str]:
    """The start-up lines: data, classes, method and devices, and what is odd about prompts."""
    devices, names = jax.devices(), experiment.dataset.classes
    numbered = [f"{number} {name}" for number, name in enumerate(names[:SHOWN_CLASSES])]
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN_CLASSES else ""
    return [
        f"data      {experiment.dataset.name}, images {experiment.dataset.image_shape}",
        *([f"classes   {', '.join(numbered)}{more}"] if names else []),
        *experiment.method.description,
        f"devices   {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        *remarks_on_prompts(experiment),
    ]


def describe_end(experiment: Experiment, workdir: Path, seconds: float) -> list[str]:
    """The closing lines: how long it took, what was found, where it is, and what may follow."""
    lines = [f"done      in {console.format_duration(seconds)}: {workdir}"]
    for name, section in measured(read_results(workdir))[0].items():
        quantity, number = next(iter(section.values.items()))
        error = number.get("standard_error")
        margin = "" if error is None else f" +- {error:.3g}"
        older = f" ({section.older})" if section.older else ""
        lines.append(f"          {name}: {quantity} {number['value']:.4g}{margin}{older}")
    commands = next_commands(experiment, workdir)
    return [*lines, *(f"{'' if i else 'next':<10}{text}" for i, text in enumerate(commands))]


def next_commands(experiment: Experiment, workdir: Path) -> list[str]:
    """Commands that make sense after a training, each of which can be run as it stands."""
    place = shlex.quote(str(workdir))
    program = f"python -m experiments.main --workdir={place}"
    if experiment.method.tokenizer is None:
        count = experiment.config.sample.num_images
        wanted = f"--seeds={count}-{count + min(count, MORE) - 1}"
    else:
        wanted = f"--config.sample.prompts={shlex.quote(example_prompt(experiment))}"
    found = [f"{program} --mode=sample {wanted}"]
    if "samples" not in metric_names(experiment.config.evaluate):
        with contextlib.suppress(ValueError, OSError):  # neither Inception nor labels, for instance
            evaluate.METRICS["samples"].check(experiment)
            found.append(f"{program} --mode=evaluate --config.evaluate.metrics=samples")
    return [*found, f"python -m launch.report {place}"]


def figures_folder(workdir: Path) -> Path:
    """WORKDIR/figures, or where --out says."""
    return Path(OUT.value).expanduser() if OUT.value else workdir / "figures"


def parse_step(value: str) -> Which:
    """What --restore_step says.

    Raises:
        ValueError: for anything but auto, latest and a number.
    """
    if value in ("auto", "latest"):
        return value
    if not value.isascii() or not value.isdigit():
        raise ValueError(
            f"--restore_step={value} must be auto, latest, or the step of a checkpoint, such as "
            "4000."
        )
    return int(value)


def run(experiment: Experiment, workdir: Path, modes: Sequence[str]) -> int:
    """Trains where --mode says so, then does `modes`; returns the exit status."""
    begin = time.perf_counter()
    console.log_lines(describe_start(experiment))
    training = MODE.value == "train"
    with contextlib.ExitStack() as stack:
        if training:
            stack.enter_context(only_writer(workdir, "training"))
        if CHECKPOINTS.value:
            keep_at(workdir, CHECKPOINTS.value)
        if training:
            stack.enter_context(latest_writer(workdir))
            start = Start(
                parse_step(RESTORE_STEP.value),
                CONTINUE_DIVERGED.value,
                CONTINUE_WITH_NEW_DATA.value,
                parse_ancestor(FROM.value, FROM_OPTIMIZER.value),
            )
            outcome = train_with_hooks(experiment, workdir, start)
            if outcome is not Outcome.FINISHED:
                return EXIT_STATUS[outcome]
        step = "latest" if training else parse_step(RESTORE_STEP.value)
        _after_training(experiment, workdir, modes, step)
    if training:
        for line in describe_end(experiment, workdir, time.perf_counter() - begin):
            console.log(line, wrap=False)
    return 0


def _after_training(
    experiment: Experiment, workdir: Path, modes: Sequence[str], restore_step: Which
) -> None:
    """What is done with the model of a checkpoint."""
    training = MODE.value == "train"
    console.doing("reading the checkpoint")
    if modes:
        loaded = load_ema(experiment, workdir, devices.make_mesh(), restore_step)
        latent.keep(experiment.config.encoder, experiment.dataset, workdir)
        if "sample" in modes:
            apart = OUT.value or folder_apart(experiment, workdir, loaded)
            out = None if training else Path(apart).expanduser()
            indices = parse_indices(SEEDS.value) if SEEDS.value else None
            sample.sample(experiment, workdir, loaded, Place(indices, out))
        if "evaluate" in modes:
            evaluate.evaluate(experiment, workdir, loaded, again=not training)
        if "figures" in modes:
            figures(experiment, figures_folder(workdir), loaded, devices.make_mesh())


def main(argv: list[str]) -> int:
    """Builds and runs; an error that the user can mend becomes one message."""
    if len(argv) > 1:
        return command_line.fail(f"unexpected arguments {argv[1:]}: options are --name=value.")
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
        # Libraries print every error of a save several times, which is raised as well.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        absl.logging.get_absl_handler().addFilter(lambda record: not record.exc_info)
    if SEEDS.value and MODE.value != "sample":
        return command_line.fail("--seeds is of --mode=sample: leave it out, or choose that mode.")
    if FROM.value and MODE.value != "train":
        return command_line.fail("--from is of training: leave it out, or leave out --mode.")
    if "://" in str(WORKDIR.value):
        return command_line.fail(
            f"--workdir={WORKDIR.value} is no folder: name one that every process can reach, a "
            "mounted bucket for instance. Checkpoints alone may be in a bucket: --checkpoints=gs://"
            "BUCKET/FOLDER."
        )
    planning = MODE.value == "plan"
    if planning:
        console.doing("planning", console.AGAIN)
    config, workdir = CONFIG.value, Path(str(WORKDIR.value)).expanduser()
    try:
        config = command_line.spelled_out(config)
        parse_step(RESTORE_STEP.value)  # which are refused before anything is computed
        parse_ancestor(FROM.value, FROM_OPTIMIZER.value)
        parse_indices(SEEDS.value or "0")
        if config.distributed != "off":
            console.release_signals()  # the cluster says when
        if not planning:
            command_line.check_writable(workdir, make=MODE.value == "train")
        devices.initialize_distributed(config.distributed)
        devices.check_backend()
        if COMPILATION_CACHE.value != "off":
            chosen = COMPILATION_CACHE.value
            devices.keep_compiled(cache_folder() / "compiled" if chosen == "auto" else Path(chosen))
        training = MODE.value == "train"
        modes = config.train.finish_with if training else () if planning else (MODE.value,)
        if WORKDIR.value:
            config = saved.with_classes_of(str(workdir), config)
            config = saved.with_autoencoder_of(str(workdir), config)
        with peers.watched():
            experiment = checked(config, ("train", *modes) if training or planning else modes)
            if planning:
                console.log_lines(describe_start(experiment))
                plan(experiment, workdir if WORKDIR.value else None)
                return 0
            return run(experiment, workdir, modes)
    except Exception as error:
        if command_line.verbose(sys.argv):
            raise
        if command_line.disk_is_full(error):
            peers.end_with(command_line.fail_of_full_disk(error))
        if is_unreachable(error):
            command_line.fail(
                f"{error}. What was saved before is whole: the same command goes on from there."
            )
            peers.end_with(EXIT_STATUS[Outcome.STOPPED])
        if isinstance(error, MENDABLE):
            peers.end_with(command_line.fail(error))
        raise


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
