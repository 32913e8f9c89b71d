"""The quality of samples, and of the estimates on the way: distances of features to real ones."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.drawing import requested
from experiments.experiment import Experiment
from experiments.features import scores
from experiments.features.extractors import Features, choose_extractor, features_of
from experiments.features.references import (
    Judge,
    judge_protocol,
    make_judge,
    read_moments,
    read_statistics,
    statistics,
)
from experiments.metrics import baselines
from experiments.metrics.metric import Context, Result, line, metric_names, number
from experiments.metrics.sample_store import (
    chain_times,
    protocol_fields,
    sample_batches,
)


def sample_features(
    context: Context, judge: Judge, fields: dict[str, Any], record: tuple[int, ...]
) -> tuple[list[Features], float]:
    """Features of the samples, set by set, and the mean number of evaluations behind a sample.

    Args:
        record: the timesteps of `chain` where it is measured too and draws the same samples, the
            last of which is 0, where the estimate of x_0 is the sample; else ().
    """
    found, evaluations = [], []
    for _, batch, counts in sample_batches(context, fields, record):
        found.append(judge.features(batch[-1] if record else batch, context.mesh))
        evaluations.append(counts)
    features, logits = (np.concatenate(values) for values in zip(*found, strict=True))
    n = fields["num_samples"]
    cuts = [slice(i * n, (i + 1) * n) for i in range(fields["num_sets"])]
    every = [Features(features[cut], logits[cut]) for cut in cuts]
    return every, float(np.concatenate(evaluations)[: cuts[-1].stop].mean())


def _one_set(judge: Judge, found: Features, num_splits: int) -> dict[str, dict[str, Any]]:
    """Every number of one set of samples, as Inception's are called."""
    train, every = judge.train.features / judge.scale, found.features / judge.scale
    score = scores.inception_score(found.logits, num_splits)
    kid, covered, *numbers = scores.nearness(every, train)
    counts = dict(zip(("fake", "real"), numbers, strict=True))
    values = {"fid_train": number(judge.distance(found.features))}
    if judge.test:
        test = statistics(judge.test.features, {"split": "test"})
        values["fid_test"] = number(judge.distance(found.features, test))
    values |= {
        "is": number(score.mean, None, deviation_over_splits=score.std),
        "kid": number(kid.mean, None, deviation_over_subsets=kid.std, subset=kid.subset_size),
        "precision": number(covered.precision, **counts),
        "recall": number(covered.recall, **counts),
    }
    if judge.test:
        held_out = scores.evenly_chosen(judge.test.features / judge.scale)
        ratio = scores.nearest_neighbour_ratio(scores.evenly_chosen(every), train, held_out)
        values["nearest_neighbour_ratio"] = number(ratio)
    return values


def _reference_distances(
    context: Context, judge: Judge, fields: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The distance to the train split of what no model should lose to, and of real images.

    As many images as samples, or all held-out images where there are fewer; none without any.
    """
    dataset = context.experiment.dataset
    train, seed = dataset.open("train"), context.experiment.config.seed
    n = fields["num_samples"]
    made = {
        "gaussian_pixels": baselines.gaussian_samples(train, dataset.num_levels, seed),
        "noise": baselines.noise_samples(dataset.image_shape, dataset.num_levels, seed),
    }
    floors = {}
    if judge.test:
        held_out = judge.test.features[:n]
        floors["held_out"] = number(judge.distance(held_out), num_images=len(held_out))
    for name, read in made.items():
        found = features_of(judge.feature_fn, read, n, judge.batch_size, context.mesh)
        floors[name] = number(judge.distance(found.features), num_images=n)
    return floors


def sample_quality(context: Context) -> Result:
    """FID, IS, KID, precision, recall and nearest-neighbour ratio of fresh samples, with floors.

    Of several sets, every number is the one of the set whose distance to train is smallest, as EDM
    reports it.
    """
    config = context.experiment.config.evaluate
    fields = protocol_fields(config)
    judge = make_judge(context.experiment.dataset, config, context.mesh, fields["drop"])
    reference = None
    if config.reference is not None:
        path = Path(config.reference).expanduser()
        reference = read_statistics(path, judge.extractor, len(judge.scale))
    record = chain_times(context.experiment) if "chain" in metric_names(config) else ()
    sets, evaluations = sample_features(context, judge, fields, record)
    every = [_one_set(judge, found, fields["num_splits"]) for found in sets]
    best = min(range(len(every)), key=lambda i: every[i]["fid_train"]["value"])
    values = dict(every[best])
    if len(every) > 1:
        values["fid_train"]["sets"] = [found["fid_train"]["value"] for found in every]
    floors = _reference_distances(context, judge, fields)
    for name, value in floors.items():
        values[f"fid_train_of_{name}"] = value
    protocol = context.sampling | fields | judge_protocol(judge)
    if reference is not None:
        values["fid_file"] = number(judge.distance(sets[best].features, reference))
        protocol["reference"] = reference.origin
    named = {judge.extractor.quantity(name): value for name, value in values.items()}
    named["evaluations"] = number(evaluations)
    return Result(named, protocol, (), _describe(judge, fields, named))


def _describe(judge: Judge, fields: dict[str, Any], values: dict[str, Any]) -> list[str]:
    extractor, n = judge.extractor, fields["num_samples"]
    note = "" if judge.test else "; nothing is held out (config.data.test_fraction)"
    lines = [f"samples   {n} x {fields['num_sets']}, features of {extractor.name}{note}"]
    for name, value in values.items():
        short, of = name.removesuffix(f"_{extractor.name}"), value.get("num_images")
        lines.append(line(short, value, f"  (of {of} images)" if of else ""))
    if not extractor.is_inception:
        lines.append(
            f"  Not comparable with FID: {extractor.name} was trained here (accuracy "
            f"{extractor.accuracy:.1%}), and compares models of this data set only."
        )
    if judge.test is None:
        lines.append(
            "  Nothing is held out (config.data.test_fraction): no distance to test images."
        )
    width = len(judge.scale)
    if n <= width:
        lines.append(f"  WARNING {n} samples for {width} features: the covariance is singular.")
    return lines


def check(experiment: Experiment) -> None:
    """Refuses a config under which the samples cannot be judged.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: for a data set, weights or a reference that are named and missing.
    """
    config = experiment.config.evaluate
    requested(experiment)
    drop = protocol_fields(config)["drop"]
    choose_extractor(config.extractor, config.inception_weights, experiment.dataset)
    if config.reference is not None:
        path = Path(config.reference).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"config.evaluate.reference = {config.reference!r} does not exist. Name an npz of "
                "mu and sigma, or none."
            )
        read_moments(path)  # before samples are drawn for it
    for split in experiment.dataset.splits:
        count = len(experiment.dataset.open(split))
        if count // drop * drop < 4:
            raise ValueError(
                f"config.evaluate.drop = {drop} leaves {count // drop * drop} of the {count} "
                f"images of the {split} split, and distances need at least 4."
            )
