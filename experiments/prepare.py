"""Prepares a data set once.

python -m experiments.prepare --dataset=fashion_mnist [--from=...] [--data_dir=...]
"""

import sys

from experiments import console

if __name__ == "__main__":
    console.watch_signals()  # before the imports, which take a second

from collections.abc import Callable, Sequence
from types import MappingProxyType

from experiments.command_line import Parser, reported
from experiments.data.dataset import Dataset
from experiments.data.datasets import DATASETS
from experiments.data.prepared import source_of
from experiments.lookup import keywords, suggestion

# Those that keep a prepared folder somewhere below a data_dir.
PREPARED: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {name: make for name, make in DATASETS.items() if "data_dir" in keywords(make)}
)


@reported
def main(argv: Sequence[str]) -> int:
    """Prepares the data set that the options name and prints its folder."""
    parser = Parser("experiments.prepare", __doc__)
    sources = " ".join(f"{name}: {make().prepared_from}." for name, make in PREPARED.items())
    where = "where to put it; default $TFDS_DATA_DIR or ~/tensorflow_datasets"
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(sorted(PREPARED))}")
    parser.add_argument("--from", dest="source", help=f"what to read. {sources}".replace("%", "%%"))
    parser.add_argument("--data_dir", help=where)
    options = parser.parse_args(argv)
    if options.dataset in DATASETS and options.dataset not in PREPARED:
        raise ValueError(
            f"{options.dataset} needs no preparing: its files are read as they are, from where "
            f"the config says, --config=experiments/configs/{options.dataset}.py "
            "--config.data.path=..."
        )
    if options.dataset not in PREPARED:
        raise ValueError(
            f"--dataset={options.dataset} is not known. {suggestion(options.dataset, PREPARED)}"
        )
    prepare = PREPARED[options.dataset](data_dir=options.data_dir).prepare
    assert prepare is not None  # of none that has a data_dir
    console.doing(f"preparing {options.dataset}", console.AGAIN)
    try:
        folder = prepare(options.source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{options.dataset} was not prepared. {error}") from error
    print(f"{options.dataset} is ready in {folder}")
    print(f"prepared  from {source_of(folder) or 'something that was not recorded then'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
