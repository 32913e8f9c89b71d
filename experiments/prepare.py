"""Prepares a data set once: python -m experiments.prepare --dataset=fashion_mnist [--from=...]."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from absl import app, flags

from experiments.data import celeb_a_hq, cifar10, digits, fashion_mnist

# name -> prepare(source or None, data_dir or None) -> folder
PREPARE: MappingProxyType[str, Callable[[str | None, str | None], str]] = MappingProxyType(
    {
        "digits": digits.prepare,
        "fashion_mnist": fashion_mnist.prepare,
        "cifar10": cifar10.prepare,
        "celeb_a_hq/256": celeb_a_hq.prepare,
    }
)

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", None, sorted(PREPARE), "The data set to prepare.")
flags.DEFINE_string(
    "from",
    None,
    "What to read: for fashion_mnist a folder of IDX files, for cifar10 a tarball, for "
    "celeb_a_hq/256 a folder of images. Left out, fashion_mnist and cifar10 are downloaded.",
)
flags.DEFINE_string(
    "data_dir", None, "Where to put it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the flags name and prints its folder."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        folder = PREPARE[FLAGS.dataset](FLAGS["from"].value, FLAGS.data_dir)
    except (OSError, ValueError) as error:  # what came, what is needed: no traceback on top
        raise SystemExit(f"{FLAGS.dataset} was not prepared. {error}") from error
    print(f"{FLAGS.dataset} is ready in {folder}")


if __name__ == "__main__":
    flags.mark_flag_as_required("dataset")
    app.run(main)
