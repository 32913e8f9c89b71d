"""Prepares a data set once: python -m experiments.prepare --dataset=fashion_mnist [--from=...]."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from absl import app, flags

from experiments.data.dataset import Dataset
from experiments.data.datasets import DATASETS
from experiments.lookup import keywords

# Those that keep a prepared folder somewhere below a data_dir.
PREPARED: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {name: make for name, make in DATASETS.items() if "data_dir" in keywords(make)}
)

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", None, sorted(PREPARED), "The data set to prepare.")
flags.DEFINE_string(
    "from",
    None,
    "What to read. "
    + " ".join(f"{name}: {make().prepared_from}." for name, make in PREPARED.items()),
)
flags.DEFINE_string(
    "data_dir", None, "Where to put it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the flags name and prints its folder."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    prepare = PREPARED[FLAGS.dataset](data_dir=FLAGS.data_dir).prepare
    assert prepare is not None  # of none that has a data_dir
    try:
        folder = prepare(FLAGS["from"].value)
    except (OSError, ValueError) as error:  # what came, what is needed: no traceback on top
        raise SystemExit(f"{FLAGS.dataset} was not prepared. {error}") from error
    print(f"{FLAGS.dataset} is ready in {folder}")


if __name__ == "__main__":
    flags.mark_flag_as_required("dataset")
    app.run(main)
