"""Process of a config: its chain or path, and how config.sample walks it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import grids, paths, samplers, schedules, spacings, thresholds
from diffusion.flow_sampler import STOPS
from diffusion.parameterizations import PARAMETERIZATIONS, WITH_OPTIONS
from diffusion.reverse import check_process, make_denoise
from diffusion.structs import Levels, Parameterization, Path, Process, Sampler, Schedule
from diffusion.variances import VARIANCES, of_density
from experiments.lookup import lookup, naming_field
from experiments.methods.method import Encoder, Respaced

AUTO = "auto"  # of config.sample.spacing: the sampler's own, or the path's
NUM_TIMESTEPS = 1000  # of a path, where config.path.num_timesteps is not set
FLAGS = 8  # steps on which a sampler is made to read what it says of itself


class _Course(NamedTuple):
    """A chain or a path and the ways along it, before anything is asked of a network.

    schedule, path: of the process. The others are those of `Walks`.
    """

    schedule: Schedule
    path: Path | None
    whole: Levels
    flags: Sampler
    spacing: dict[str, Any]
    levels: Callable[[int], tuple[Schedule, Levels]]


class Walks(NamedTuple):
    """A process, and how config.sample walks it.

    whole: its levels, all of the chain's; of a path config.path.num_timesteps, evenly spaced in
        the log SNR, whose falls alone the bound weighs errors with.
    flags: the sampler, for what it says of itself.
    sampler: levels -> the sampler on them.
    spacing: {name, **options} of the levels that are walked.
    levels: number of steps -> (chain, levels).
    threshold: of estimates of x_0 in sampling.
    """

    process: Process
    whole: Levels
    flags: Sampler
    sampler: Callable[[Levels], Sampler]
    spacing: dict[str, Any]
    levels: Callable[[int], tuple[Schedule, Levels]]
    threshold: Callable[[jax.Array], jax.Array]


def _parameterization(config: ConfigDict) -> Parameterization:
    found = lookup(
        {**PARAMETERIZATIONS, **WITH_OPTIONS}, config.parameterization, "parameterization"
    )
    with naming_field("parameterization"):
        made: Parameterization = found() if callable(found) else found
    return made


def _sampler(config: ConfigDict) -> Callable[[Levels], Sampler]:
    make = lookup(samplers.SAMPLERS, config.sample.sampler, "sample.sampler")

    def sampler(levels: Levels) -> Sampler:
        with naming_field("sample.sampler"), jax.ensure_compile_time_eval():
            made: Sampler = make(levels)
            return made

    return sampler


def walks_of(config: ConfigDict, encoder: Encoder) -> Walks:
    """The process that config.schedule or config.path describes, with the choices of config.sample.

    Raises:
        ValueError: for a config of both or of neither, and for what cannot be on its process.
    """
    if ("schedule" in config) == ("path" in config):
        raise ValueError(
            "a config of diffusion has either config.schedule, a chain, or config.path, continuous "
            "time, as in --config=experiments/configs/digits.py:flow; this one has "
            f"{'both' if 'path' in config else 'neither'}."
        )
    sampler = _sampler(config)
    course = (_of_path if "path" in config else _of_chain)(config, sampler)
    variance = lookup(VARIANCES, config.variance, "variance")
    if encoder.latents is not None or course.path is not None:
        variance = of_density(variance)
    if variance.extra_channels and course.path is not None:
        fixed = [name for name, each in VARIANCES.items() if not each.extra_channels]
        raise ValueError(
            f"config.variance.name = {config.variance.name!r} is learned of a chain's steps, which "
            f"continuous time does not have. Choose {' or '.join(fixed)}."
        )
    process = Process(course.schedule, _parameterization(config), variance, course.path)
    of_chain = process.path is None and not process.parameterization.needs_path
    with naming_field("schedule" if of_chain else "parameterization"):
        check_process(process)
    threshold = lookup(thresholds.THRESHOLDS, config.sample.threshold, "sample.threshold")
    return Walks(
        process, course.whole, course.flags, sampler, course.spacing, course.levels, threshold
    )


def _asked(config: ConfigDict, own: str, table: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """config.sample.spacing as {name, **options} with `own` for auto, and its entry."""
    spec = config.sample.spacing.to_dict()
    if spec["name"] in {*grids.GRIDS, *spacings.SPACINGS} - {*table}:
        kinds = ("a path", "a chain") if spec["name"] in grids.GRIDS else ("a chain", "a path")
        raise ValueError(
            f"config.sample.spacing.name = {spec['name']!r} is of {kinds[0]}, and this model is of "
            f"{kinds[1]}. Choose one of: {', '.join((AUTO, *table))}."
        )
    found = lookup({AUTO: table[own], **table}, spec, "sample.spacing")
    return ({"name": own} if spec["name"] == AUTO else spec), found


def _of_chain(config: ConfigDict, sampler: Callable[[Levels], Sampler]) -> _Course:
    with naming_field("schedule"):
        betas = lookup(schedules.BETAS, config.schedule, "schedule")()
        schedule = schedules.from_betas(betas)
    whole = paths.levels_of(schedule)
    flags = sampler(whole)
    spacing, space = _asked(config, flags.spacing.__name__, spacings.SPACINGS)
    with naming_field("sample.spacing"):
        space(len(betas), len(betas))

    def levels(num_steps: int) -> tuple[Schedule, Levels]:
        respaced = schedules.respace(betas, space(len(betas), num_steps))
        return respaced, paths.levels_of(respaced)

    return _Course(schedule, None, whole, flags, spacing, levels)


def _of_path(config: ConfigDict, sampler: Callable[[Levels], Sampler]) -> _Course:
    with naming_field("path"):
        path: Path = lookup(paths.PATHS, config.path, "path", (), ("num_timesteps",))()
        num_timesteps = config.path.get("num_timesteps", NUM_TIMESTEPS)
        whole = paths.grid(path, grids.log_snr(path, num_timesteps))
    flags = sampler(paths.grid(path, grids.log_snr(path, FLAGS)))
    end = paths.grid(path, np.array([path.end]))
    own = path.spacing
    first = grids.GRIDS[own](path, FLAGS)[0]
    if flags.adaptive and not np.isclose(first, path.start):
        own = "uniform"  # its own steps end at the first level, which is to be the path's start
    elif flags.needs_signal and not end.signal[-1] > 0.0:
        own = "log_snr"
    spacing, space = _asked(config, own, grids.GRIDS)

    def levels(num_steps: int) -> tuple[Schedule, Levels]:
        with naming_field("sample.spacing"):
            found = paths.grid(path, space(path, num_steps))
        return schedules.from_levels(found), found

    return _Course(schedules.from_levels(whole), path, whole, flags, spacing, levels)


def respaced(apply: Callable[..., jax.Array], walks: Walks) -> Callable[[int], Respaced]:
    """Number of steps (0: all) -> the chain of so many timesteps, and its reverse process.

    A mean says nothing of longer steps, whoever asks; a learned variance does not where the sampler
    uses it.
    """
    process, total = walks.process, walks.whole.num_steps
    default = min(STOPS, total) if walks.flags.adaptive else total
    one_step = process.variance.one_step and walks.flags.uses_variance
    single = process.parameterization.predicts_mean or one_step

    def chain(num_steps: int) -> Respaced:
        with jax.ensure_compile_time_eval():  # tables are constants of what is being compiled
            schedule, levels = walks.levels(num_steps or default)
            if levels.num_steps < total and single:
                raise ValueError(
                    f"{levels.num_steps} steps instead of {total} are not possible here: this "
                    "network was taught the mean (mu) or the variance (learned) of single steps, "
                    "which longer steps do not have. Choose 0 (every timestep)."
                )
            walked = process._replace(schedule=schedule)
            denoise = make_denoise(apply, walked, threshold=walks.threshold)
            return Respaced(schedule, denoise, levels)

    return chain
