"""Distances between two sets of pictures, without a run.

    python -m experiments.fid A B

A and B are folders of pictures (with all that lies below them) or of samples, npz files of images
(the first array of uint8[N, H, W, C], as --mode=sample and others write them) or of statistics (mu,
sigma), or data:NAME, the training split of a prepared data set. B is the reference: KID, precision
and recall need images on both sides. Inception's weights are looked for in $DDPM_INCEPTION_WEIGHTS
and the cache folder (docs/evaluation.md); without them, --classifier=NAME judges by the classifier
of a data set, and then the numbers are no FID. --json prints one object.
"""

import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from experiments import console, devices
from experiments.command_line import Parser, reported
from experiments.data.dataset import Dataset, gather
from experiments.data.datasets import DATASETS
from experiments.features import frechet, scores
from experiments.features.extractors import (
    Extractor,
    Features,
    features_of,
    load_extractor,
    make_feature_fn,
)
from experiments.features.references import Statistics, read_statistics, statistics
from experiments.files.atomic import strict_json
from experiments.files.tensors import read_npz
from experiments.lookup import lookup
from experiments.sample_files import ABOUT, WRITTEN

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MOST = 10_000  # images of either set behind KID, precision and recall


class Pictures(NamedTuple):
    """Images of one size, read when they are needed.

    read: (start, stop) -> uint8[N, H, W, C].
    """

    number: int
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]


def _open(path: Path) -> np.ndarray:
    """uint8[H, W, 1 or 3] of one picture."""
    try:
        with Image.open(path) as picture:
            grey = picture.mode in ("1", "L", "LA", "I", "I;16", "F")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def folder(path: Path) -> Pictures:
    """All pictures below a folder, in the order of their paths.

    Raises:
        ValueError: where there are none, and for pictures of several sizes when they are read.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)}).")
    shape = _open(files[0]).shape

    def read(start: int, stop: int) -> np.ndarray:
        found = [_open(file) for file in files[start:stop]]
        for file, pixels in zip(files[start:stop], found, strict=True):
            if pixels.shape != shape:
                raise ValueError(
                    f"{file} is {pixels.shape}, and {files[0]} {shape}: pictures of one size and "
                    "kind are needed."
                )
        return np.stack(found)

    return Pictures(len(files), shape, read)


def _in_memory(images: np.ndarray) -> Pictures:
    return Pictures(len(images), images.shape[1:], lambda start, stop: images[start:stop])


def npz(path: Path) -> Pictures:
    """The images of an npz file.

    Raises:
        ValueError: where it holds none.
    """
    arrays = read_npz(path)
    for name, array in sorted(arrays.items(), key=lambda item: item[0] != "arr_0"):
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3) and array.size:
            return _in_memory(array)
        if name == "arr_0":
            raise ValueError(
                f"{path}: arr_0 is {array.dtype}{list(array.shape)}, and images are uint8[N, H, W, "
                "1 or 3]. (Samples that were written as PNG files are in the folder images/.)"
            )
    raise ValueError(f"{path} holds neither images uint8[N, H, W, 1 or 3] nor mu and sigma.")


def own_samples(path: Path) -> Pictures:
    """The samples of a folder that --mode=sample wrote, without the grids beside them."""
    if (path / "images").is_dir():
        return folder(path / "images")
    files = [file for file in sorted(path.iterdir()) if WRITTEN.fullmatch(file.name)]
    if not files:
        raise ValueError(f"{path} holds no samples yet: --mode=sample has not finished there.")
    return _in_memory(np.concatenate([read_npz(file)["arr_0"] for file in files]))


def _is_statistics(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def _dataset(name: str) -> Dataset:
    found: Dataset = lookup(DATASETS, {"name": name}, "data")()
    return found


def pictures_of(name: str) -> Pictures:
    """What a word of the command line names, but for statistics.

    Raises:
        ValueError, FileNotFoundError: for what is not there, or no pictures.
    """
    if name.startswith("data:"):
        source = _dataset(name.removeprefix("data:")).open("train")
        shape = source[0]["image"].shape
        return Pictures(len(source), shape, lambda a, b: gather(source, range(a, b))["image"])
    path = Path(name).expanduser()
    if path.is_dir():
        return own_samples(path) if (path / ABOUT).is_file() else folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} does not exist: name a folder of pictures, an npz file, or data:NAME."
        )
    if path.suffix != ".npz":
        raise ValueError(f"{name} is neither a folder nor an npz file.")
    return npz(path)


class Side(NamedTuple):
    """What is known of one of the two sets; the last two None for statistics alone."""

    statistics: Statistics
    features: Features | None = None
    number: int | None = None


def _side(word: str, extractor: Extractor, judged_by: Dataset, mesh: Mesh, size: int) -> Side:
    """Of what a word of the command line names."""
    if _named_statistics(word):
        width = 2048 if extractor.is_inception else _width(extractor, judged_by)
        return Side(read_statistics(Path(word).expanduser(), extractor, width))
    found = pictures_of(word)
    console.doing(f"reading {word}")
    feature_fn = make_feature_fn(extractor, mesh)
    size = devices.round_up(min(size, found.number), mesh)
    features = features_of(feature_fn, found.read, found.number, size, mesh)
    return Side(statistics(features.features, {}), features, found.number)


def _chosen(features: np.ndarray) -> np.ndarray:
    """At most MOST of them, evenly spaced."""
    places = np.linspace(0, len(features) - 1, min(len(features), MOST)).round().astype(int)
    return features[places]


def compare(a: str, b: str, classifier: str | None, batch_size: int = 64) -> dict[str, Any]:
    """The distance of A to the reference B, with what more their kinds allow.

    Args:
        a, b: as on the command line.
        classifier: a data set whose classifier judges; None is Inception.
        batch_size: images at a time.

    Raises:
        ValueError, FileNotFoundError: for what cannot be read or compared.
    """
    mesh, judged_by = devices.make_mesh(), _dataset(classifier or "digits")
    kind = "inception" if classifier is None else "classifier"
    extractor = load_extractor(kind, None, judged_by)
    shapes = [None if _named_statistics(word) else pictures_of(word).shape for word in (a, b)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            f"{a} holds images of {shapes[0]}, and {b} of {shapes[1]}: bring them to one size "
            "first."
        )
    first, second = (_side(word, extractor, judged_by, mesh, batch_size) for word in (a, b))
    values = _values(first, second, extractor)
    return {
        "values": {extractor.quantity(key): float(value) for key, value in values.items()},
        "images": [first.number, second.number],
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "features": len(first.statistics.mean),
    }


def _values(first: Side, second: Side, extractor: Extractor) -> dict[str, float]:
    """The numbers under the names of Inception's; a classifier's features are standardised."""
    ours, theirs = first.statistics, second.statistics
    scale = np.ones(len(theirs.mean))
    if not extractor.is_inception:
        deviation = np.sqrt(np.diag(theirs.covariance))
        scale = np.where(deviation, deviation, 1)
    outer = np.outer(scale, scale)
    values = {
        "fid": frechet.frechet_distance(
            *(ours.mean / scale, ours.covariance / outer),
            *(theirs.mean / scale, theirs.covariance / outer),
        )
    }
    if first.features is not None:
        splits = min(10, len(first.features.logits))
        values["is"] = scores.inception_score(first.features.logits, splits).mean
    sides = [side.features.features / scale for side in (first, second) if side.features]
    if len(sides) == 2 and min(map(len, sides)) >= 4:
        fake, real = map(_chosen, sides)
        covered = scores.precision_recall(real, fake)
        kid = scores.kernel_distance(fake, real).mean
        values |= {"kid": kid, "precision": covered.precision, "recall": covered.recall}
    return values


def _named_statistics(word: str) -> bool:
    path = Path(word).expanduser()
    return not word.startswith("data:") and path.is_file() and _is_statistics(path)


def _width(extractor: Extractor, judged_by: Dataset) -> int:
    """How many features a classifier has."""
    picture = jnp.zeros((1, *judged_by.image_shape))
    return int(extractor.apply(extractor.params, picture)[0].shape[-1])


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Prints what `compare` finds; returns the exit status."""
    parser = Parser("experiments.fid", __doc__)
    parser.add_argument("a", metavar="A", help="what is judged")
    parser.add_argument("b", metavar="B", help="the reference")
    parser.add_argument("--classifier", metavar="NAME", help="judge by this data set's classifier")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size={arguments.batch_size} must be at least 1.")
    found = compare(arguments.a, arguments.b, arguments.classifier, arguments.batch_size)
    if arguments.json:
        print(strict_json(found, indent=2))
        return 0
    for key, value in found["values"].items():
        print(f"{key:<36} {value:.6g}")
    numbers = " and ".join("statistics" if n is None else f"{n:,}" for n in found["images"])
    print(f"of {numbers} images, features of {found['extractor']}")
    least = min((n for n in found["images"] if n is not None), default=None)
    if least is not None and least <= found["features"]:
        print(f"WARNING   {least} images for {found['features']} features: not a stable number.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
