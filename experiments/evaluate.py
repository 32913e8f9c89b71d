"""The numbers of a trained model: what config.evaluate.metrics names, each with its protocol."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments import baselines, bound, data, devices, logs, parts, plots, runs
from experiments.build import Experiment, choose
from experiments.sample import load_ema


class Context(NamedTuple):
    """What every metric works on."""

    experiment: Experiment
    workdir: Path
    mesh: Any
    step: int
    params: Any
    source: data.Source
    num_images: int

    def folder(self, metric: str, protocol: Mapping[str, Any]) -> Path:
        """Where the metric keeps its parts: another folder for anything that they depend on."""
        config = runs.config_to_dict(self.experiment.config)
        facts = {name: config[name] for name in ("seed", "data", "model", "schedule", "variance")}
        return self.workdir / "evaluation" / f"{metric}_{parts.key([facts, dict(protocol)])}"


class Result(NamedTuple):
    """What a metric found.

    values: quantity -> {"value": ..., "standard_error": ..., ...}.
    protocol: everything that must agree before two values of a quantity may be compared.
    lines: for the terminal.
    """

    values: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    files: tuple[str, ...]
    lines: list[str]


def number(value: float, error: float | None = None, **more: Any) -> dict[str, Any]:
    """A value, with its standard error where it has one."""
    return {"value": float(value)} | ({} if error is None else {"standard_error": error}) | more


def line(name: str, value: dict[str, Any], detail: str = "") -> str:
    """A row for the terminal."""
    error = value.get("standard_error")
    spread = "" if error is None else f" +- {error:.3f}"
    return f"  {name:<24} {value['value']:8.3f}{spread}{detail}"


def image_protocol(context: Context) -> dict[str, Any]:
    """Which images a likelihood is of, and under which weights."""
    config = context.experiment.config.evaluate
    return {
        "dataset": context.experiment.dataset.name,
        "split": config.split,
        "num_images": context.num_images,
        "split_images": len(context.source),
        "weights": "ema",
        "checkpoint_step": context.step,
        "num_timesteps": context.experiment.model.schedule.num_timesteps,
    }


def which_images(context: Context) -> str:
    """For the terminal; an incomplete split is said to be one."""
    whole = context.num_images == len(context.source)
    split = context.experiment.config.evaluate.split
    return f"all {context.num_images}" if whole else f"first {context.num_images} {split} images"


def bits_per_dim(context: Context) -> Result:
    """The variational bound with all T terms, and the rate-distortion curve that they are.

    Writes bound.csv (every timestep) and rate_distortion.png.
    """
    experiment, config = context.experiment, context.experiment.config.evaluate
    protocol = image_protocol(context) | {
        "quantity": "variational bound",
        "decoder": config.decoder,
        "clip_denoised": config.clip_denoised,
        "num_draws": config.num_draws,
    }

    def run(denoise: Callable[..., Any], params: Any, name: str) -> bound.BoundTable:
        folder = context.folder(name, protocol)
        arguments = (context.source, context.num_images, context.mesh, folder)
        return bound.evaluate_bound(experiment, denoise, params, *arguments)

    table = run(experiment.denoise, context.params, "bpd")
    untrained = run(experiment.untrained_denoise, {}, "bpd_untrained").total
    gaussian = baselines.pixel_gaussian(
        experiment.dataset.open("train"), context.source, context.num_images
    )
    draws = {}
    if config.num_draws > 1:
        error = bound.standard_error(table.draws)
        draws = {"standard_error_over_draws": error}
    total = table.total
    rmse_of_mean = 127.5 * np.sqrt(table.x_0_mse)
    values = {
        "bits_per_dim": number(total.mean(), bound.standard_error(total), **draws),
        "rate": number(table.rate[0]),
        "distortion": number(table.decoder.mean()),
        "prior": number(table.prior.mean()),
        "kl": number(table.divergence.mean()),
        "decoder": number(table.decoder.mean()),
        "rmse_root_of_mean": number(rmse_of_mean[0]),
        "rmse_mean_of_roots": number(127.5 * table.x_0_rmse[0]),
        "untrained_network": number(untrained.mean(), bound.standard_error(untrained)),
        "gaussian_per_pixel": number(gaussian.mean(), bound.standard_error(gaussian)),
    }
    if devices.is_main_process():
        write_terms(context.workdir / "bound.csv", table)
        title = f"{experiment.dataset.name}, {which_images(context)}, step {context.step:,}"
        plots.rate_distortion(
            context.workdir / "rate_distortion.png", table.rate, rmse_of_mean, title
        )
    split = ", ".join(f"{name} {values[name]['value']:.3f}" for name in ("prior", "kl", "decoder"))
    lines = [
        f"bits/dim  of {which_images(context)}, +- standard error over images",
        line("this model (bound)", values["bits_per_dim"], f"  = {split}"),
        line("untrained network", values["untrained_network"]),
        line("Gaussian per pixel", values["gaussian_per_pixel"]),
        f"  rate {values['rate']['value']:.3f} + distortion {values['distortion']['value']:.3f} "
        f"bits/dim, RMSE {values['rmse_root_of_mean']['value']:.2f} of 255",
    ]
    return Result(values, protocol, ("bound.csv", "rate_distortion.png"), lines)


def write_terms(path: Path, table: bound.BoundTable) -> None:
    """The bound by timestep as CSV: the term, the rate so far, RMSE on [0, 255] averaged two ways.

    The root of the mean over images, and the mean over images of each one's root (DDPM Table 4 does
    not say which it gives).
    """
    names = "t,reverse_time,bits_per_dim,rate,rmse_root_of_mean,rmse_mean_of_roots\n"
    columns = (table.terms, table.rate, 127.5 * np.sqrt(table.x_0_mse), 127.5 * table.x_0_rmse)
    rows = zip(*columns, strict=True)
    last = len(table.terms)
    text = "".join(
        f"{t},{last - t}," + ",".join(f"{value:.8g}" for value in row) + "\n"
        for t, row in enumerate(rows)
    )
    path.write_text(names + text)


def estimated_bits_per_dim(context: Context) -> Result:
    """The same bound from a few timesteps of each image, drawn anew for every image: unbiased."""
    experiment, config = context.experiment, context.experiment.config.evaluate
    bits = bound.estimate_bound(
        experiment, context.params, context.source, context.num_images, context.mesh
    )
    protocol = image_protocol(context) | {
        "quantity": "variational bound, estimated from strata of timesteps",
        "decoder": config.decoder,
        "clip_denoised": config.clip_denoised,
        "num_strata": config.num_strata,
    }
    values = {"bits_per_dim_estimate": number(bits.mean(), bound.standard_error(bits))}
    lines = [
        f"bits/dim  estimated from {config.num_strata + 1} timesteps of {which_images(context)}",
        line("this model (estimate)", values["bits_per_dim_estimate"]),
    ]
    return Result(values, protocol, (), lines)


METRICS: MappingProxyType[str, Callable[[Context], Result]] = MappingProxyType(
    {"bpd": bits_per_dim, "bpd_fast": estimated_bits_per_dim}
)


def metric_names(experiment: Experiment) -> list[str]:
    """What config.evaluate.metrics names, separated by commas.

    Raises:
        ValueError: for an unknown name, or none.
    """
    names = [name.strip() for name in experiment.config.evaluate.metrics.split(",")]
    for name in names:
        choose(METRICS, name, "evaluate.metrics")
    return names


def check(experiment: Experiment) -> None:
    """Refuses a config that `evaluate` would fail on, before anything is computed.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: if the data set is missing.
    """
    config = experiment.config.evaluate
    metric_names(experiment)
    for name in ("batch_size", "num_draws", "timesteps_per_call", "timesteps_at_once"):
        if config[name] < 1:
            raise ValueError(f"config.evaluate.{name} = {config[name]} must be at least 1.")
    last = experiment.model.schedule.num_timesteps - 1
    if not 1 <= config.num_strata <= last and "bpd_fast" in metric_names(experiment):
        raise ValueError(
            f"config.evaluate.num_strata = {config.num_strata} must be 1 to {last}, the timesteps "
            "that there are beside 0."
        )
    source = experiment.dataset.open(config.split)
    if not 0 <= config.num_images <= len(source):
        raise ValueError(
            f"config.evaluate.num_images = {config.num_images}, but the {config.split} split of "
            f"{experiment.dataset.name!r} has {len(source)} images. Choose 1 to {len(source)}, or "
            "0 for all."
        )


def evaluate(experiment: Experiment, workdir: Path) -> dict[str, dict[str, Any]]:
    """Measures config.evaluate.metrics on the newest checkpoint's EMA parameters.

    Every metric becomes a section of results.json as soon as it is known; returned are the values
    of each.
    """
    config = experiment.config.evaluate
    mesh = devices.make_mesh()
    source = experiment.dataset.open(config.split)
    step, params = load_ema(experiment, workdir, mesh)
    num_images = config.num_images or len(source)
    context = Context(experiment, workdir, mesh, step, params, source, num_images)
    results = {}
    for name in metric_names(experiment):
        begin = time.perf_counter()
        result = METRICS[name](context)
        seconds = time.perf_counter() - begin
        section = {
            "values": result.values,
            "protocol": result.protocol,
            "files": list(result.files),
            "seconds": round(seconds, 2),
        }
        if devices.is_main_process():
            runs.write_results(workdir, name, section, experiment.config)
        for text in result.lines:
            logs.say(text)
        logs.say(f"  ({name}: {logs.format_duration(seconds)})")
        results[name] = result.values
    return results
