"""What samples are compared with: features of real images, kept, and published statistics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import devices
from experiments.data.dataset import Dataset, fingerprint, read_images
from experiments.features import frechet
from experiments.features.extractors import (
    Extractor,
    Features,
    features_of,
    load_extractor,
    make_feature_fn,
)
from experiments.files.tensors import cache_folder, read_npz, sha256, write_npz


class Statistics(NamedTuple):
    """The Gaussian of a set of features, and where it comes from."""

    mean: np.ndarray  # f64[D]
    covariance: np.ndarray  # f64[D, D]
    origin: dict[str, Any]


def statistics(features: np.ndarray, origin: dict[str, Any]) -> Statistics:
    """Of f32[N, D], with ddof = 1."""
    moments = frechet.moments(features)
    return Statistics(moments.mean, moments.covariance, origin | {"num_images": moments.count})


def real_features(
    extractor: Extractor,
    dataset: Dataset,
    split: str,
    count: int,
    feature_fn: Callable[..., Any],
    batch_size: int,
    mesh: Mesh,
) -> Features:
    """Features of the first `count` images of a split, from the cache where they are kept.

    A kept file has the keys of published statistics too (`mu`, `sigma`), with JSON in `metadata`:
    extractor, its SHA-256, data set, its fingerprint, split, number of images.
    """
    source = dataset.open(split)
    facts = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "dataset": dataset.name,
        "fingerprint": fingerprint(dataset.name, source),
        "split": split,
        "num_images": count,
    }
    stem = f"{extractor.name}-{dataset.name.replace('/', '_')}-{facts['fingerprint']}"
    path = cache_folder() / "references" / f"{stem}-{split}-{count}.npz"
    if devices.all_agree(path.is_file()):
        try:
            stored = read_npz(path)
            if json.loads(str(stored["metadata"])) == facts:
                return Features(stored["features"], stored["logits"])
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path}, where this program kept features, is damaged; delete it. ({error})"
            ) from error
    found = features_of(
        feature_fn,
        lambda start, stop: read_images(source, start, stop)["image"],
        count,
        batch_size,
        mesh,
    )
    if devices.is_main_process():
        moments = frechet.moments(found.features)
        arrays = {"mu": moments.mean, "sigma": moments.covariance, **found._asdict()}
        write_npz(path, arrays | {"metadata": np.array(json.dumps(facts))})
    return found


def read_moments(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """f64[D] `mu` and f64[D, D] `sigma` of an npz of statistics, and its metadata or None.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file without them, of shapes that do not fit, or with numbers that are not
            finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the reference statistics {path} do not exist.")
    try:
        arrays = read_npz(path, ("mu", "sigma", "metadata"))
        metadata = json.loads(str(arrays["metadata"])) if "metadata" in arrays else None
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged, or holds no plain arrays `mu` and `sigma`: {error}"
        ) from error
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(
            f"{path} has mu {mean.shape} and sigma {covariance.shape}: statistics of D features "
            "are (D,) and (D, D)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(
            f"{path} holds numbers that are not finite in mu or sigma, from which no distance "
            "follows. Make it anew, or choose another config.evaluate.reference."
        )
    return mean, covariance, metadata


def read_statistics(path: Path, extractor: Extractor, width: int) -> Statistics:
    """`mu` and `sigma` of an npz that another project published, or of this program's cache.

    What does not say whose features it holds is taken for Inception's, which is all that others
    publish; nothing but its width can be checked then.

    Args:
        extractor: that the samples are judged by.
        width: of its features.

    Raises:
        FileNotFoundError, ValueError: as `read_moments` does.
        ValueError: for a file of another width, or of another extractor.
    """
    mean, covariance, metadata = read_moments(path)
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise ValueError(
            f"{path} has mu {mean.shape} and sigma {covariance.shape}; the extractor's features "
            f"need ({width},) and ({width}, {width})."
        )
    theirs = metadata.get("extractor_sha256") if isinstance(metadata, dict) else None
    if theirs != extractor.sha256 and not (theirs is None and extractor.is_inception):
        made_by = f"the extractor with SHA-256 {theirs}" if theirs else "an unnamed extractor"
        raise ValueError(
            f"{path} holds features of {made_by}, and the samples are judged by {extractor.name} "
            f"({extractor.sha256}): a distance between the two means nothing. Choose statistics of "
            "that extractor, or none (config.evaluate.reference)."
        )
    origin = {"file": path.name, "file_sha256": sha256(path), "metadata": metadata}
    return Statistics(mean, covariance, origin)


def scale_of(extractor: Extractor, reference: Statistics) -> np.ndarray:
    """f64[D] that features are divided by: 1 of Inception's, else their deviation."""
    deviation = np.sqrt(np.diag(reference.covariance))
    return np.ones_like(deviation) if extractor.is_inception else np.where(deviation, deviation, 1)


def distance(a: Statistics, b: Statistics, scale: np.ndarray) -> float:
    """The Fréchet distance of two sets of features, divided by f64[D]."""
    outer = np.outer(scale, scale)
    return frechet.frechet_distance(
        *(a.mean / scale, a.covariance / outer), *(b.mean / scale, b.covariance / outer)
    )


class Judge(NamedTuple):
    """An extractor with the real features that everything is compared with."""

    extractor: Extractor
    feature_fn: Callable[..., Any]
    train: Features
    test: Features | None  # None where nothing is held out
    train_statistics: Statistics
    scale: np.ndarray  # f64[D], by which features are divided
    batch_size: int
    fingerprints: dict[str, str]  # of the splits

    def features(self, pictures: np.ndarray, mesh: Mesh) -> Features:
        """Features of images [N, H, W, C] in 0..255."""

        def read(start: int, stop: int) -> np.ndarray:
            return pictures[start:stop]

        return features_of(self.feature_fn, read, len(pictures), self.batch_size, mesh)

    def distance(self, features: np.ndarray, reference: Statistics | None = None) -> float:
        """The Fréchet distance to the train split, or to another reference, features scaled."""
        return distance(statistics(features, {}), reference or self.train_statistics, self.scale)


def make_judge(dataset: Dataset, config: ConfigDict, mesh: Mesh, drop: int) -> Judge:
    """Loads the extractor and the real features. A classifier's features are standardised.

    Args:
        config: the section `evaluate`.
        drop: the numbers of real images are rounded down to a multiple of it.
    """
    extractor = load_extractor(config.extractor, config.inception_weights, dataset)
    feature_fn = make_feature_fn(extractor, mesh)
    batch_size = devices.round_up(config.batch_size, mesh)

    def real(split: str) -> Features:
        count = len(dataset.open(split)) // drop * drop
        return real_features(extractor, dataset, split, count, feature_fn, batch_size, mesh)

    train = real("train")
    test = real("test") if "test" in dataset.splits else None
    reference = statistics(train.features, {"split": "train"})
    scale = scale_of(extractor, reference)
    fingerprints = {
        split: fingerprint(dataset.name, dataset.open(split)) for split in dataset.splits
    }
    return Judge(extractor, feature_fn, train, test, reference, scale, batch_size, fingerprints)


def judge_protocol(judge: Judge) -> dict[str, Any]:
    """Which features were compared, and with how many real images."""
    accuracy = judge.extractor.accuracy
    return {
        "extractor": judge.extractor.name,
        "extractor_sha256": judge.extractor.sha256,
        "train_fingerprint": judge.fingerprints["train"],
        "test_fingerprint": judge.fingerprints.get("test"),
        "train_images": len(judge.train.features),
        "test_images": len(judge.test.features) if judge.test else 0,
    } | ({} if accuracy is None else {"extractor_accuracy": accuracy})
