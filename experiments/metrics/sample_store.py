"""Samples for the metrics: drawn once under a protocol, and kept."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from diffusion.spacings import uniform
from experiments import console, devices
from experiments.drawing import make_sample_fn, steps_taken
from experiments.experiment import Experiment
from experiments.files.atomic import digest
from experiments.files.tensors import read_npz
from experiments.metrics.metric import Context, check_finite
from experiments.sample_files import Rows, SampleFiles, set_of_run

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


def _store(context: Context, quantize: str, record: tuple[int, ...]) -> SampleFiles:
    """The set that a metric draws into; whole levels are shared with --mode=sample."""
    about = context.sampling | {"quantize": quantize, "parameters": context.weights}
    about |= {"record": list(record)} if record else {}
    folder = context.workdir / "evaluation" / f"samples_{digest(about)}"
    files = set_of_run(context.workdir, about, folder)
    if devices.is_main_process():
        files.prepare()
        _adopt(files, context, quantize, record)
    return files


def _adopt(files: SampleFiles, context: Context, quantize: str, record: tuple[int, ...]) -> None:
    """Takes over what an older version of this program drew under the same protocol."""
    size = devices.round_up(context.experiment.config.sample.batch_size, context.mesh)
    facts = {name: value for name, value in context.sampling.items() if name != "dtype"}
    facts |= {"quantize": quantize, "record": list(record), "batch_size": size}
    for path in sorted(context.folder("samples", facts).glob("*.npz")):
        found = read_npz(path)
        pixels = found["samples"].swapaxes(0, 1) if record else found["samples"]
        indices = int(path.stem) + np.arange(len(pixels))
        files.keep(Rows(pixels, indices, found["finite"], found["evaluations"]), False)
        path.unlink()


def _ends(files: SampleFiles, firsts: Sequence[int], size: int, count: int) -> np.ndarray:
    """Up to where each batch is there, i64[N]; its first where some is missing that counts."""
    found = np.array(firsts)
    if devices.is_main_process():
        done = files.done(pictures=False)
        for row, first in enumerate(firsts):
            for end in (first + size, min(first + size, count)):
                if found[row] == first and done.issuperset(range(first, end)):
                    found[row] = end
    return np.asarray(devices.from_main(found))


def sample_batches(
    context: Context, fields: dict[str, Any], record: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index of the first, samples [B, H, W, C] in 0..255, evaluations i32[B] behind them).

    Each is drawn once and then kept, by this or by --mode=sample. With `record`, the estimates of
    x_0 at those timesteps instead: [K, B, H, W, C]. While one batch is handed out, the next is
    being drawn. A batch of which something is missing is drawn whole, so that it is to the last bit
    what it would have been.
    """
    experiment, mesh = context.experiment, context.mesh
    config, quantize = experiment.config.sample, fields["quantize"]
    size = devices.round_up(config.batch_size, mesh)
    count = fields["num_samples"] * fields["num_sets"]
    firsts = range(0, count, size)
    files = _store(context, quantize, record)
    ends = dict(zip(firsts, _ends(files, firsts, size, count).tolist(), strict=True))
    draw = make_sample_fn(
        experiment, mesh, num_steps=config.num_steps, record=record, quantize=quantize
    )

    def start(first: int) -> Any:
        if ends[first] > first:
            return files.rows(range(first, ends[first]), pictures=False)
        indices = np.arange(first, first + size, dtype=np.int32)
        return draw(context.params, devices.put_global(indices, devices.sharded(mesh)))

    def finish(first: int, found: Any) -> tuple[int, np.ndarray, np.ndarray]:
        if not isinstance(found, Rows):
            samples, progress, finite, evaluations = devices.fetch(found)
            pixels = progress.swapaxes(0, 1) if record else samples
            found = Rows(pixels, first + np.arange(len(pixels)), finite, evaluations)
            if devices.is_main_process():
                files.keep(found, pictures=False)
        check_finite(context, first, found.finite[: count - first])
        pixels = found.arr_0.swapaxes(0, 1) if record else found.arr_0
        return first, pixels, found.evaluations

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
