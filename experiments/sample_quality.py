"""The quality of samples, and of the estimates on the way: distances of features to real ones."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from diffusion.schedules import evenly_spaced
from experiments import baselines, data, devices, images, logs, plots
from experiments.build import Experiment
from experiments.evaluation import Context, Result, check_finite, line, number
from experiments.metrics import frechet, scores
from experiments.metrics.extractors import (
    Extractor,
    Features,
    choose_extractor,
    features_of,
    load_extractor,
    make_feature_fn,
)
from experiments.metrics.references import Statistics, read_statistics, real_features, statistics
from experiments.parts import Parts
from experiments.sample import make_sample_fn

# What a published protocol fixes; "custom" is the config's own fields.
PROTOCOLS = MappingProxyType(
    {
        "paper": dict(num_samples=50_000, quantize="round", num_splits=10, num_sets=1, drop=1),
        "repository": dict(num_samples=50_000, quantize="none", num_splits=1, num_sets=1, drop=256),
        "edm": dict(num_samples=50_000, quantize="round", num_splits=10, num_sets=3, drop=1),
    }
)
CUSTOM = ("num_samples", "quantize", "num_splits", "num_sets", "drop")
NEIGHBOURS = 10_000  # real images of KID, and images of either kind of precision and recall


def protocol_fields(config: Any) -> dict[str, Any]:
    """The fields of the protocol in force, and the name of the published one that they are.

    Raises:
        ValueError: for an unknown protocol or a field out of range.
    """
    if config.protocol != "custom" and config.protocol not in PROTOCOLS:
        raise ValueError(
            f"config.evaluate.protocol = {config.protocol!r} is not known. Choose one of: custom, "
            f"{', '.join(PROTOCOLS)}."
        )
    if config.quantize not in images.QUANTIZE:
        raise ValueError(
            f"config.evaluate.quantize = {config.quantize!r} is not known. Choose one of: "
            f"{', '.join(images.QUANTIZE)}."
        )
    fields = {name: config[name] for name in CUSTOM}
    fields = PROTOCOLS.get(config.protocol, fields)
    for name, least in (("num_samples", 4), ("num_splits", 1), ("num_sets", 1), ("drop", 1)):
        if fields[name] < least:
            raise ValueError(f"config.evaluate.{name} = {fields[name]} must be at least {least}.")
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


class Judge(NamedTuple):
    """An extractor with the real features that everything is compared with."""

    extractor: Extractor
    feature_fn: Callable[..., Any]
    train: Features
    test: Features
    train_statistics: Statistics
    scale: np.ndarray  # f64[D], by which features are divided
    batch_size: int
    fingerprints: dict[str, str]  # of the splits

    def look(self, pictures: np.ndarray, mesh: Any) -> Features:
        """Features of images [N, H, W, C] in 0..255."""

        def read(start: int, stop: int) -> np.ndarray:
            return pictures[start:stop]

        return features_of(self.feature_fn, read, len(pictures), self.batch_size, mesh)

    def distance(self, features: np.ndarray, reference: Statistics | None = None) -> float:
        """The Fréchet distance to the train split, or to another reference, features scaled."""
        a, b = statistics(features, {}), reference or self.train_statistics
        outer = np.outer(self.scale, self.scale)
        return frechet.frechet_distance(
            a.mean / self.scale,
            a.covariance / outer,
            b.mean / self.scale,
            b.covariance / outer,
        )


def make_judge(experiment: Experiment, mesh: Any, drop: int) -> Judge:
    """Loads the extractor and the real features. A classifier's features are standardised.

    Args:
        drop: the numbers of real images are rounded down to a multiple of it.
    """
    config, dataset = experiment.config.evaluate, experiment.dataset
    extractor = load_extractor(config.extractor, config.inception_weights, dataset)
    feature_fn = make_feature_fn(extractor, mesh)
    batch_size = devices.round_up(config.batch_size, mesh)

    def real(split: str) -> Features:
        count = len(dataset.open(split)) // drop * drop
        return real_features(extractor, dataset, split, count, feature_fn, batch_size, mesh)

    train, test = real("train"), real("test")
    reference = statistics(train.features, {"split": "train"})
    deviation = np.sqrt(np.diag(reference.covariance))
    scale = np.ones_like(deviation) if extractor.is_inception else np.where(deviation, deviation, 1)
    fingerprints = {
        split: data.fingerprint(dataset.name, dataset.open(split)) for split in data.SPLITS
    }
    return Judge(extractor, feature_fn, train, test, reference, scale, batch_size, fingerprints)


def sample_batches(
    context: Context, fields: dict[str, Any], record: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first, samples [B, H, W, C] in 0..255), each drawn once and then kept.

    With `record`, the estimates of x_0 at those timesteps instead: [K, B, H, W, C]. While one batch
    is handed out, the next is being drawn.
    """
    experiment, mesh = context.experiment, context.mesh
    config = experiment.config.sample
    batch_size = devices.round_up(config.batch_size, mesh)
    count = fields["num_samples"] * fields["num_sets"]
    firsts = range(0, count, batch_size)
    facts = sampling_protocol(context) | {"quantize": fields["quantize"], "record": list(record)}
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

    def finish(first: int, started: Any) -> tuple[int, np.ndarray]:
        if not isinstance(started, dict):
            samples, progress, finite = devices.fetch(started)
            started = {"samples": progress if record else samples, "finite": finite}
            parts.write(f"{first:08d}", started)
        check_finite(context, first, started["finite"][: count - first])
        return first, started["samples"]

    waiting = None
    for first in logs.track(list(firsts), "samples"):
        started = first, start(first)
        if waiting is not None:
            yield finish(*waiting)
        waiting = started
    if waiting is not None:
        yield finish(*waiting)


def sampling_protocol(context: Context) -> dict[str, Any]:
    """What the samples depend on."""
    config = context.experiment.config
    chain = context.experiment.model.schedule.num_timesteps
    return {
        "dataset": context.experiment.dataset.name,
        **context.origin._asdict(),
        "checkpoint": config.checkpoint,
        "checkpoint_step": context.step,
        "sampler": config.sample.sampler.name,
        "num_steps": config.sample.num_steps or chain,
        "clip_denoised": config.sample.clip_denoised,
        "variance": config.variance.name,
        "seed": config.seed,
    }


def sample_features(
    context: Context, judge: Judge, fields: dict[str, Any], record: tuple[int, ...]
) -> list[Features]:
    """Features of the samples, set by set.

    Args:
        record: the timesteps of `chain` where it is measured too and draws the same samples, the
            last of which is 0, where the estimate of x_0 is the sample; else ().
    """
    found = []
    for _, batch in sample_batches(context, fields, record):
        found.append(judge.look(batch[-1] if record else batch, context.mesh))
    features, logits = (np.concatenate(values) for values in zip(*found, strict=True))
    n = fields["num_samples"]
    cuts = [slice(i * n, (i + 1) * n) for i in range(fields["num_sets"])]
    return [Features(features[cut], logits[cut]) for cut in cuts]


def _few(features: np.ndarray) -> np.ndarray:
    """At most NEIGHBOURS of them, evenly spaced."""
    count = min(len(features), NEIGHBOURS)
    return features[np.linspace(0, len(features) - 1, count).round().astype(int)]


def _one_set(judge: Judge, found: Features, num_splits: int) -> dict[str, dict[str, Any]]:
    """Every number of one set of samples, as Inception's are called."""
    scaled = {
        name: features / judge.scale
        for name, features in (
            ("fake", found.features),
            ("train", judge.train.features),
            ("test", judge.test.features),
        )
    }
    score = scores.inception_score(found.logits, num_splits)
    real, fake = _few(scaled["train"]), _few(scaled["fake"])
    covered, counts = scores.precision_recall(real, fake), dict(real=len(real), fake=len(fake))
    kid = scores.kernel_distance(scaled["fake"], real)
    ratio = scores.nearest_neighbour_ratio(fake, scaled["train"], _few(scaled["test"]))
    test = statistics(judge.test.features, {"split": "test"})
    return {
        "fid_train": number(judge.distance(found.features)),
        "fid_test": number(judge.distance(found.features, test)),
        "is": number(score.mean, None, deviation_over_splits=score.std),
        "kid": number(kid.mean, None, deviation_over_subsets=kid.std, subset=kid.subset_size),
        "precision": number(covered.precision, **counts),
        "recall": number(covered.recall, **counts),
        "nearest_neighbour_ratio": number(ratio),
    }


def _floors(context: Context, judge: Judge, fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The distance to the train split of what no model should lose to, and of real images.

    The numbers of images are as many as the samples, or all held-out images where there are fewer.
    """
    dataset = context.experiment.dataset
    train, seed = dataset.open("train"), context.experiment.config.seed
    n = fields["num_samples"]
    made = {
        "gaussian_pixels": baselines.pixel_samples(train, seed),
        "noise": baselines.noise_samples(dataset.image_shape, seed),
    }
    held_out = judge.test.features[:n]
    floors = {"held_out": number(judge.distance(held_out), num_images=len(held_out))}
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
    judge = make_judge(context.experiment, context.mesh, fields["drop"])
    record = chain_times(context.experiment) if "chain" in config.metrics else ()
    sets = sample_features(context, judge, fields, record)
    every = [_one_set(judge, found, fields["num_splits"]) for found in sets]
    best = min(range(len(every)), key=lambda i: every[i]["fid_train"]["value"])
    values = dict(every[best])
    if len(every) > 1:
        values["fid_train"]["sets"] = [found["fid_train"]["value"] for found in every]
    floors = _floors(context, judge, fields)
    for name, value in floors.items():
        values[f"fid_train_of_{name}"] = value
    protocol = sampling_protocol(context) | fields | judge_protocol(judge)
    if config.reference is not None:
        path = Path(config.reference).expanduser()
        reference = read_statistics(path, judge.extractor, len(judge.scale))
        values["fid_file"] = number(judge.distance(sets[best].features, reference))
        protocol["reference"] = reference.origin
    named = {judge.extractor.quantity(name): value for name, value in values.items()}
    return Result(named, protocol, (), _describe(judge, fields, named))


def judge_protocol(judge: Judge) -> dict[str, Any]:
    """Which features were compared, and with how many real images."""
    accuracy = judge.extractor.accuracy
    return {
        "extractor": judge.extractor.name,
        "extractor_sha256": judge.extractor.sha256,
        "train_fingerprint": judge.fingerprints["train"],
        "test_fingerprint": judge.fingerprints["test"],
        "train_images": len(judge.train.features),
        "test_images": len(judge.test.features),
    } | ({} if accuracy is None else {"extractor_accuracy": accuracy})


def _describe(judge: Judge, fields: dict[str, Any], values: dict[str, Any]) -> list[str]:
    extractor, n = judge.extractor, fields["num_samples"]
    head = f"samples   {n} x {fields['num_sets']}, features of {extractor.name}"
    lines = [head]
    for name, value in values.items():
        short, of = name.removesuffix(f"_{extractor.name}"), value.get("num_images")
        lines.append(line(short, value, f"  (of {of} images)" if of else ""))
    if not extractor.is_inception:
        lines.append(
            f"  Not comparable with FID: {extractor.name} was trained here (accuracy "
            f"{extractor.accuracy:.1%}), and compares models of this data set only."
        )
    width = len(judge.scale)
    if n <= width:
        lines.append(f"  WARNING {n} samples for {width} features: the covariance is singular.")
    return lines


def chain_times(experiment: Experiment) -> tuple[int, ...]:
    """Timesteps of the sampling chain at which `chain` looks, falling to 0; a single one is 0."""
    num_steps = experiment.config.sample.num_steps or experiment.model.schedule.num_timesteps
    columns = min(experiment.config.evaluate.chain_points, num_steps)
    if columns == 1:
        return (0,)
    return tuple(int(t) for t in evenly_spaced(num_steps, columns)[::-1])


def chain_quality(context: Context) -> Result:
    """The distance and score of the estimate of x_0 along the reverse chain (DDPM Figure 10).

    Of several sets of samples it looks at the first, and its protocol is that of a single one.
    Writes chain.csv and chain.png.
    """
    experiment = context.experiment
    fields = named(protocol_fields(experiment.config.evaluate) | {"num_sets": 1})
    judge = make_judge(context.experiment, context.mesh, fields["drop"])
    record = chain_times(experiment)
    num_steps = experiment.config.sample.num_steps or experiment.model.schedule.num_timesteps
    found: list[list[Features]] = [[] for _ in record]
    for _, batch in sample_batches(context, fields, record):
        for k, pictures in enumerate(batch):
            found[k].append(judge.look(pictures, context.mesh))
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
    protocol = sampling_protocol(context) | fields | judge_protocol(judge)
    lines = [f"chain     {n} estimates of x_0 at {len(record)} times: chain.csv, chain.png"]
    return Result(values, protocol, ("chain.csv", "chain.png"), lines)


def check(experiment: Experiment) -> None:
    """Refuses a config under which the samples cannot be judged.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: for a data set, weights or a reference that are named and missing.
    """
    config = experiment.config.evaluate
    protocol_fields(config)
    if config.chain_points < 1:
        raise ValueError(f"config.evaluate.chain_points = {config.chain_points} must be positive.")
    if not {"samples", "chain"} & {name.strip() for name in config.metrics.split(",")}:
        return
    if experiment.config.sample.batch_size < 1:
        raise ValueError(
            f"config.sample.batch_size = {experiment.config.sample.batch_size} must be at least 1."
        )
    choose_extractor(config.extractor, config.inception_weights, experiment.dataset)
    if config.reference is not None and not Path(config.reference).expanduser().is_file():
        raise FileNotFoundError(
            f"config.evaluate.reference = {config.reference!r} does not exist. Name an npz of mu "
            "and sigma, or none."
        )
    for split in data.SPLITS:
        count, drop = len(experiment.dataset.open(split)), protocol_fields(config)["drop"]
        if count // drop * drop < 4:
            raise ValueError(
                f"config.evaluate.drop = {drop} leaves {count // drop * drop} of the {count} "
                f"images of the {split} split, and distances need at least 4."
            )
