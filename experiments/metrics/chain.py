"""How the estimate of x_0 improves along the reverse chain (DDPM Figure 10)."""

import csv

import numpy as np

from experiments import devices
from experiments.drawing import steps_taken
from experiments.experiment import Experiment
from experiments.features import scores
from experiments.features.extractors import Features
from experiments.features.references import judge_protocol, make_judge
from experiments.methods.method import chain_of
from experiments.metrics import plots, sample_quality
from experiments.metrics.metric import Context, Result, number
from experiments.metrics.sample_store import (
    chain_times,
    named,
    protocol_fields,
    sample_batches,
)


def check(experiment: Experiment) -> None:
    """Refuses a method without a chain, and what `sample_quality.check` does.

    Raises:
        ValueError, FileNotFoundError: naming the field or the file.
    """
    chain_of(experiment.method, "The metric chain")
    sample_quality.check(experiment)


def chain_quality(context: Context) -> Result:
    """The distance and score of the estimate of x_0 along the reverse chain (DDPM Figure 10).

    Of several sets of samples it looks at the first, and its protocol is that of a single one.
    Writes chain.csv and chain.png.
    """
    experiment = context.experiment
    fields = named(protocol_fields(experiment.config.evaluate) | {"num_sets": 1})
    judge = make_judge(experiment.dataset, experiment.config.evaluate, context.mesh, fields["drop"])
    record = chain_times(experiment)
    num_steps = steps_taken(experiment, experiment.config.sample.num_steps)
    found: list[list[Features]] = [[] for _ in record]
    for _, batch, _ in sample_batches(context, fields, record):
        for k, pictures in enumerate(batch):
            found[k].append(judge.features(pictures, context.mesh))
    n = fields["num_samples"]
    rows = []
    for t, parts in zip(record, found, strict=True):
        features = np.concatenate([part.features for part in parts])[:n]
        logits = np.concatenate([part.logits for part in parts])[:n]
        score = scores.inception_score(logits, fields["num_splits"]).mean
        rows.append((num_steps - t, judge.distance(features), score))
    names = [judge.extractor.quantity(name) for name in ("fid_train", "is")]
    if devices.is_main_process():
        with (context.workdir / "chain.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["reverse_time", *names], *rows])
        table = np.array(rows)
        series = {name: table[:, i + 1] for i, name in enumerate(names)}
        plots.along_the_chain(context.workdir / "chain.png", table[:, 0], series)
    values = {
        f"{name}_at_{row[0]}": number(row[i + 1]) for row in rows for i, name in enumerate(names)
    }
    protocol = context.sampling | fields | judge_protocol(judge)
    lines = [f"chain     {n} estimates of x_0 at {len(record)} times: chain.csv, chain.png"]
    return Result(values, protocol, ("chain.csv", "chain.png"), lines)
