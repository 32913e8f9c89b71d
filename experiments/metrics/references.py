"""What samples are compared with: features of real images, kept, and published statistics."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import data, devices
from experiments.metrics import frechet
from experiments.metrics.cache import cache_folder
from experiments.metrics.extractors import Extractor, Features, features_of
from experiments.weights.sources import sha256


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
    dataset: data.Dataset,
    split: str,
    count: int,
    feature_fn: Callable[..., Any],
    batch_size: int,
    mesh: Any,
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
        "fingerprint": data.fingerprint(dataset.name, source),
        "split": split,
        "num_images": count,
    }
    stem = f"{extractor.name}-{dataset.name.replace('/', '_')}-{facts['fingerprint']}"
    path = cache_folder() / "references" / f"{stem}-{split}-{count}.npz"
    if devices.all_agree(path.is_file()):
        try:
            with np.load(path, allow_pickle=False) as stored:
                if json.loads(str(stored["metadata"])) == facts:
                    return Features(stored["features"], stored["logits"])
        except Exception as error:  # whatever zip, zlib and NumPy's headers can raise
            raise ValueError(
                f"{path}, where this program kept features, is damaged; delete it. ({error})"
            ) from error
    found = features_of(
        feature_fn,
        lambda start, stop: data.read(source, start, stop)["image"],
        count,
        batch_size,
        mesh,
    )
    if devices.is_main_process():
        moments = frechet.moments(found.features)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as stream:
            np.savez(
                stream,
                **found._asdict(),
                mu=moments.mean,
                sigma=moments.covariance,
                metadata=np.array(json.dumps(facts)),
            )
        os.replace(stream.name, path)
    return found


def read_statistics(path: Path, extractor: Extractor, width: int) -> Statistics:
    """`mu` and `sigma` of an npz that another project published, or of this program's cache.

    What does not say whose features it holds is taken for Inception's, which is all that others
    publish; nothing but its width can be checked then.

    Args:
        extractor: that the samples are judged by.
        width: of its features.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file without them, of another width, or of another extractor.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the reference statistics {path} do not exist.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("mu", "sigma")}
            metadata = json.loads(str(stored["metadata"])) if "metadata" in stored else None
    except Exception as error:  # whatever zip, zlib and NumPy's headers can raise
        raise ValueError(
            f"{path} is damaged, or holds no plain arrays `mu` and `sigma`: {error}"
        ) from error
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
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
