"""The numbers of a trained model: what config.evaluate.metrics names, each with its protocol."""

import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import console, devices
from experiments.build import Experiment
from experiments.console import format_duration
from experiments.lookup import naming_field
from experiments.metrics import bound, chain, flow, parts, sample_quality
from experiments.metrics.metric import Context, Result, metric_names
from experiments.state import load_ema
from experiments.workdir.checkpoint import checksums
from experiments.workdir.results import write_results

METRICS: MappingProxyType[str, Callable[[Context], Result]] = MappingProxyType(
    {
        "bpd": bound.bits_per_dim,
        "bpd_fast": bound.estimated_bits_per_dim,
        "ode": flow.flow_bits_per_dim,
        "samples": sample_quality.sample_quality,
        "chain": chain.chain_quality,
    }
)


def check(experiment: Experiment) -> None:
    """Refuses a config that `evaluate` would fail on, before anything is computed.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: if the data set is missing.
    """
    config = experiment.config.evaluate
    names = metric_names(config)
    last = experiment.model.schedule.num_timesteps - 1
    if config.num_strata > last and "bpd_fast" in names:
        raise ValueError(
            f"config.evaluate.num_strata = {config.num_strata} must be 1 to {last}, the timesteps "
            "that there are beside 0."
        )
    if "ode" in names:
        with naming_field("evaluate.metrics"):
            flow.make_flow_fn(experiment, devices.make_mesh())
    sample_quality.check(experiment)
    source = experiment.dataset.open(config.split)
    if config.num_images > len(source):
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
    step, params, origin = load_ema(experiment, workdir, mesh)
    num_images = config.num_images or len(source)
    if num_images < len(source) and {"bpd", "bpd_fast", "ode"} & set(metric_names(config)):
        console.log(
            f"WARNING   likelihoods are of the first {num_images} of {len(source)} {config.split} "
            "images: not numbers of the split (config.evaluate.num_images = 0 takes all)."
        )
    weights = parts.key(checksums(params))
    context = Context(experiment, workdir, mesh, step, params, source, num_images, weights, origin)
    results: dict[str, dict[str, Any]] = {}
    scratch: list[Path] = []
    for name in metric_names(config):
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
            write_results(workdir, name, section, experiment.config)
        for text in result.lines:
            console.log(text)
        console.log(f"  ({name}: {format_duration(seconds)})")
        results[name] = result.values
        scratch += result.scratch
    for folder in scratch:
        parts.remove(folder)
    return results
