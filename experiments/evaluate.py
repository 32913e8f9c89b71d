"""The numbers of a trained model: what config.evaluate.metrics names, each with its protocol."""

import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import console, devices
from experiments.console import format_duration
from experiments.experiment import Experiment
from experiments.files.atomic import digest
from experiments.metrics import (
    baselines,
    bound,
    chain,
    continuous,
    elbo,
    flow,
    parts,
    sample_quality,
)
from experiments.metrics.metric import Context, Metric, metric_names
from experiments.workdir.checkpoint import crc32s
from experiments.workdir.config import config_to_dict
from experiments.workdir.origin import Loaded
from experiments.workdir.results import read_results, write_results
from experiments.workdir.sinks import show

METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "bpd": Metric(bound.check, bound.bits_per_dim),
        "bpd_fast": Metric(bound.check_estimate, bound.estimated_bits_per_dim),
        "bpd_continuous": Metric(continuous.check, continuous.continuous_bits_per_dim),
        "baselines": Metric(lambda experiment: None, baselines.density_baselines),
        "elbo": Metric(elbo.check, elbo.evidence_lower_bound),
        "latent_bound": Metric(elbo.check_latent, elbo.latent_bound),
        "ode": Metric(flow.check, flow.flow_bits_per_dim),
        "samples": Metric(sample_quality.check, sample_quality.sample_quality, of_images=False),
        "chain": Metric(chain.check, chain.chain_quality, of_images=False),
    }
)


def check(experiment: Experiment) -> None:
    """Refuses a config that `evaluate` would fail on, before anything is computed.

    More images than the split has are told of, and no reason to refuse.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: if the data set, or a file that a metric needs, is missing.
    """
    config = experiment.config.evaluate
    for name in metric_names(config):
        METRICS[name].check(experiment)
    source = experiment.open(config.split)
    if config.num_images > len(source):
        console.log(
            f"WARNING   config.evaluate.num_images = {config.num_images}, but the {config.split} "
            f"split of {experiment.dataset.name!r} has {len(source)} images: all of them are taken."
        )


def context_of(experiment: Experiment, workdir: Path, loaded: Loaded) -> Context:
    """The context of the metrics of config.evaluate, for the parameters that were loaded."""
    config, weights = experiment.config.evaluate, digest(crc32s(loaded.params))
    source = experiment.open(config.split)
    num_images = min(config.num_images or len(source), len(source))
    mesh, (step, params, origin) = devices.make_mesh(), loaded
    return Context(experiment, workdir, mesh, step, params, source, num_images, weights, origin)


def evaluate(
    experiment: Experiment, workdir: Path, loaded: Loaded, again: bool = True
) -> dict[str, dict[str, Any]]:
    """Measures config.evaluate.metrics on the parameters that were loaded.

    Every metric becomes a section of results.json as soon as it is known.

    Args:
        experiment: whose config says what and how.
        workdir: of the run.
        loaded: the parameters.
        again: False leaves alone what results.json has of these parameters under this config.

    Returns:
        The values of each metric that was measured.
    """
    config = experiment.config.evaluate
    context = context_of(experiment, workdir, loaded)
    num_images, source = context.num_images, context.source
    of = digest([{**config_to_dict(experiment.config), "loader": {}}, context.weights])
    before = read_results(workdir)
    names = metric_names(config)
    known = [] if again else [name for name in names if before.get(name, {}).get("of") == of]
    if known:
        names = [name for name in names if name not in known]
        console.log(
            f"measured  {', '.join(known)} before, of these parameters under this config: "
            "--mode=evaluate measures again"
        )
    if num_images < len(source) and any(METRICS[name].of_images for name in names):
        console.log(
            f"WARNING   likelihoods are of the first {num_images} of {len(source)} {config.split} "
            "images: not numbers of the split (config.evaluate.num_images = 0 takes all)."
        )
    results: dict[str, dict[str, Any]] = {}
    scratch: list[Path] = []
    for name in names:
        console.doing(f"measuring {name}")
        begin = time.perf_counter()
        result = METRICS[name].measure(context)
        seconds = time.perf_counter() - begin
        section = {
            "values": result.values,
            "protocol": result.protocol,
            "files": list(result.files),
            "of": of,
            "seconds": round(seconds, 2),
        }
        if devices.is_main_process():
            write_results(workdir, name, section, experiment.config)
            values = {f"eval/{name}/{k}": v["value"] for k, v in result.values.items()}
            show(workdir, experiment.config, context.step, values)
        for text in result.lines:
            console.log(text)
        console.log(f"  ({name}: {format_duration(seconds)})")
        results[name] = result.values
        scratch += result.scratch
    for folder in scratch:
        parts.remove(folder)
    return results
