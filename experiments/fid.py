"""Distances between two sets of pictures, without a run.

    python -m experiments.fid A B

A and B are folders of pictures (with all that lies below them) or of samples, zip archives of
pictures, npz files of images (the first array of uint8[N, H, W, C], as --mode=sample and others
write them) or of statistics (mu, sigma), or data:NAME, the training split of a prepared data set. B
is the reference: KID, precision and recall need images on both sides. Pictures are read as training
reads them, in grey where the classifier that judges knows no colours. Inception's weights are
looked for in $DDPM_INCEPTION_WEIGHTS and the cache folder (docs/evaluation.md); without them,
--classifier=NAME judges by the classifier of a data set, and then the numbers are no FID. --json
prints one object.
"""

import argparse
import ast
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import console, devices
from experiments.command_line import Parser, reported
from experiments.data.dataset import Dataset
from experiments.data.reader import BACKGROUNDS
from experiments.features import scores
from experiments.features.extractors import (
    Extractor,
    Features,
    features_of,
    load_extractor,
    make_feature_fn,
)
from experiments.features.references import (
    Statistics,
    distance,
    read_statistics,
    scale_of,
    statistics,
)
from experiments.files.atomic import strict_json
from experiments.picture_sets import (
    Pictures,
    Reading,
    dataset_of,
    pictures_of,
    written_size,
)


def _is_statistics(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


class Side(NamedTuple):
    """What is known of one of the two sets; the last two None for statistics alone."""

    statistics: Statistics
    features: Features | None = None
    number: int | None = None


def _side(
    word: str,
    found: Pictures | None,
    extractor: Extractor,
    judged_by: Dataset,
    mesh: Mesh,
    size: int,
) -> Side:
    """Of what a word of the command line names; None are statistics."""
    if found is None:
        width = 2048 if extractor.is_inception else _width(extractor, judged_by)
        return Side(read_statistics(Path(word).expanduser(), extractor, width))
    console.doing(f"reading {word}")
    feature_fn = make_feature_fn(extractor, mesh)
    size = devices.round_up(min(size, found.number), mesh)
    features = features_of(feature_fn, found.read, found.number, size, mesh)
    return Side(statistics(features.features, {}), features, found.number)


def _check(
    words: Sequence[str], sets: Sequence[Pictures | None], wanted: tuple[int, ...] | None
) -> None:
    """Refuses sets that cannot be compared with each other, or judged.

    Args:
        wanted: H, W, C that the classifier takes; None for Inception, which takes any.
    """
    there = [(word, found) for word, found in zip(words, sets, strict=True) if found]
    for word, found in there:
        if found.number < 2:
            raise ValueError(
                f"{word} holds {found.number} picture: a distance is between the spreads of two "
                "sets, of two pictures each at least and of thousands to be stable."
            )
        if wanted and found.shape != wanted:
            size = f"--image_size={wanted[0]} " * (found.shape[:2] != wanted[:2])
            kind = f"--channels={wanted[2]} " * (found.shape[2] != wanted[2])
            raise ValueError(
                f"{word} holds {_described(found.shape)}, and the classifier takes "
                f"{_described(wanted)}: {size}{kind}reads them so, as training does. Or choose "
                "another --classifier."
            )
    if len({found.shape for _, found in there}) > 1:
        (a, first), (b, second) = ((word, found.shape) for word, found in there)
        raise ValueError(
            f"{a} holds {_described(first)}, and {b} {_described(second)}: bring them to one size, "
            f"by --image_size={min(*first[:2], *second[:2])} for instance, which makes squares of "
            "them as training does."
        )


def _described(shape: tuple[int, ...]) -> str:
    """Images H, W, C for a message."""
    return f"pictures of {written_size(shape)} in {'grey' if shape[2] == 1 else 'colours'}"


def compare(
    a: str,
    b: str,
    classifier: str | None,
    batch_size: int = 64,
    **how: Any,
) -> dict[str, Any]:
    """The distance of A to the reference B, with what more their kinds allow.

    Args:
        a, b: as on the command line.
        classifier: a data set whose classifier judges; None is Inception.
        batch_size: images at a time.
        how: fields of `Reading`; channels are as many as the classifier takes, where left out.

    Raises:
        ValueError, FileNotFoundError: for what cannot be read or compared.
    """
    mesh, judged_by = devices.make_mesh(), dataset_of(classifier or "digits")
    wanted = None if classifier is None else judged_by.image_shape
    reading = Reading(**{"channels": wanted[2] if wanted else 3} | how)
    sets = [None if _named_statistics(word) else pictures_of(word, reading) for word in (a, b)]
    _check((a, b), sets, wanted)
    extractor = load_extractor("inception" if classifier is None else "classifier", None, judged_by)
    first, second = (
        _side(word, found, extractor, judged_by, mesh, batch_size)
        for word, found in zip((a, b), sets, strict=True)
    )
    values = _values(first, second, extractor)
    return {
        "values": {extractor.quantity(key): float(value) for key, value in values.items()},
        "images": [first.number, second.number],
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "features": len(first.statistics.mean),
        "reading": reading._asdict(),
        "remarks": list(dict.fromkeys(line for found in sets if found for line in found.remarks)),
    }


def _values(first: Side, second: Side, extractor: Extractor) -> dict[str, float]:
    """The numbers under the names of Inception's; a classifier's features are standardised."""
    scale = scale_of(extractor, second.statistics)
    values = {"fid": distance(first.statistics, second.statistics, scale)}
    if first.features is not None:
        splits = min(10, len(first.features.logits))
        values["is"] = scores.inception_score(first.features.logits, splits).mean
    sides = [side.features.features / scale for side in (first, second) if side.features]
    if len(sides) == 2 and min(map(len, sides)) >= 4:
        found = scores.nearness(*sides)
        values["kid"] = found.kernel.mean
        values |= found.covered._asdict()
    return values


def _named_statistics(word: str) -> bool:
    path = Path(word).expanduser()
    return not word.startswith("data:") and path.is_file() and _is_statistics(path)


def _width(extractor: Extractor, judged_by: Dataset) -> int:
    """How many features a classifier has."""
    picture = jnp.zeros((1, *judged_by.image_shape))
    return int(extractor.apply(extractor.params, picture)[0].shape[-1])


def _value_range(text: str) -> tuple[float, ...]:
    """Two unlike numbers."""
    try:
        black, white = ast.literal_eval(text)
        if float(black) != float(white):
            return float(black), float(white)
    except (ValueError, TypeError, SyntaxError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not understood: give the values of black and white, such as 0,4095"
    )


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Prints what `compare` finds; returns the exit status."""
    parser = Parser("experiments.fid", __doc__)
    parser.add_argument("a", metavar="A", help="what is judged")
    parser.add_argument("b", metavar="B", help="the reference")
    parser.add_argument("--classifier", metavar="NAME", help="judge by this data set's classifier")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument(
        "--image_size", type=int, metavar="N", help="make squares of N pixels: resize, then crop"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), help="1 reads everything in grey")
    parser.add_argument(
        "--background", choices=tuple(BACKGROUNDS), help="of what is transparent; default white"
    )
    parser.add_argument(
        "--value_range",
        metavar="BLACK,WHITE",
        type=_value_range,
        help="values of pictures of more than 8 bits; default 0,65535, of floating point 0,1",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size={arguments.batch_size} must be at least 1.")
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ValueError(f"--image_size={arguments.image_size} must be at least 1.")
    given = {name: getattr(arguments, name) for name in Reading._fields}
    how = {name: value for name, value in given.items() if value is not None}
    found = compare(arguments.a, arguments.b, arguments.classifier, arguments.batch_size, **how)
    if arguments.json:
        print(strict_json(found, indent=2))
        return 0
    console.log_lines(found["remarks"])
    for key, value in found["values"].items():
        print(f"{key:<36} {value:.6g}")
    numbers = " and ".join("statistics" if n is None else f"{n:,}" for n in found["images"])
    print(f"of {numbers} images, features of {found['extractor']}")
    if found["reading"]["channels"] == 1:
        print("read in grey")
    least = min((n for n in found["images"] if n is not None), default=None)
    if least is not None and least <= found["features"]:
        print(f"WARNING   {least} images for {found['features']} features: not a stable number.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
