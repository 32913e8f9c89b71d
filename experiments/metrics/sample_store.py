"""Samples for the metrics: drawn once under a protocol, and kept."""

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np

from diffusion.spacings import uniform
from experiments import console, devices
from experiments.drawing import make_sample_fn, steps_taken
from experiments.experiment import Experiment
from experiments.metrics.metric import Context, check_finite
from experiments.metrics.parts import Parts

# What a published protocol fixes; "custom" is the config's own fields.
PROTOCOLS = MappingProxyType(
    {
        "paper": dict(num_samples=50_000, quantize="round", num_splits=10, num_sets=1, drop=1),
        "repository": dict(num_samples=50_000, quantize="none", num_splits=1, num_sets=1, drop=256),
        "edm": dict(num_samples=50_000, quantize="round", num_splits=10, num_sets=3, drop=1),
    }
)
CUSTOM = ("num_samples", "quantize", "num_splits", "num_sets", "drop")


def protocol_fields(config: Any) -> dict[str, Any]:
    """The fields of the protocol in force, and the name of the published one that they are.

    Raises:
        ValueError: for fewer samples than splits.
    """
    fields = {name: config[name] for name in CUSTOM}
    fields = PROTOCOLS.get(config.protocol, fields)
    if fields["num_samples"] < fields["num_splits"]:
        raise ValueError(
            f"config.evaluate.num_samples = {fields['num_samples']} must be at least num_splits = "
            f"{fields['num_splits']}."
        )
    return named(fields)


def named(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of CUSTOM with the name of the published protocol that they are, or "custom"."""
    fields = {name: fields[name] for name in CUSTOM}
    protocol = next((name for name, preset in PROTOCOLS.items() if preset == fields), "custom")
    return {"protocol": protocol, **fields}


def sample_batches(
    context: Context, fields: dict[str, Any], record: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index of the first, samples [B, H, W, C] in 0..255, evaluations i32[B] behind them).

    Each is drawn once and then kept. With `record`, the estimates of x_0 at those timesteps
    instead: [K, B, H, W, C]. While one batch is handed out, the next is being drawn.
    """
    experiment, mesh = context.experiment, context.mesh
    config = experiment.config.sample
    batch_size = devices.round_up(config.batch_size, mesh)
    count = fields["num_samples"] * fields["num_sets"]
    firsts = range(0, count, batch_size)
    facts = context.sampling | {"quantize": fields["quantize"], "record": list(record)}
    facts["batch_size"] = batch_size
    parts = Parts(context.folder("samples", facts), [f"{first:08d}" for first in firsts])
    draw = make_sample_fn(
        experiment, mesh, num_steps=config.num_steps, record=record, quantize=fields["quantize"]
    )

    def start(first: int) -> Any:
        if f"{first:08d}" in parts:
            return parts.read(f"{first:08d}")
        indices = np.arange(first, first + batch_size, dtype=np.int32)
        return draw(context.params, devices.put_global(indices, devices.sharded(mesh)))

    def finish(first: int, started: Any) -> tuple[int, np.ndarray, np.ndarray]:
        if not isinstance(started, dict):
            samples, progress, finite, evaluations = devices.fetch(started)
            started = {"samples": progress if record else samples, "finite": finite}
            started["evaluations"] = evaluations
            parts.write(f"{first:08d}", started)
        check_finite(context, first, started["finite"][: count - first])
        return first, started["samples"], started["evaluations"]

    waiting = None
    for first in console.track(list(firsts), "samples"):
        started = first, start(first)
        if waiting is not None:
            yield finish(*waiting)
        waiting = started
    if waiting is not None:
        yield finish(*waiting)


def chain_times(experiment: Experiment) -> tuple[int, ...]:
    """Timesteps of the sampling chain at which `chain` looks, falling to 0; a single one is 0."""
    num_steps = steps_taken(experiment, experiment.config.sample.num_steps)
    columns = min(experiment.config.evaluate.chain_points, num_steps)
    if columns == 1:
        return (0,)
    return tuple(int(t) for t in uniform(num_steps, columns)[::-1])
