"""Lays the numbers of runs side by side.

    python -m experiments.compare runs/a/results.json runs/b

Each argument is a results.json that `--mode=evaluate` wrote, or its folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Parser, reported
from experiments.reports.compare import compare, read


@reported
def main(argv: Sequence[str]) -> int:
    """Prints the table of the files that the command line names."""
    parser = Parser("experiments.compare", __doc__)
    parser.add_argument("runs", nargs="+", help="results.json files, or their folders")
    names = parser.parse_args(argv).runs
    if len(names) < 2:
        parser.error("name two results.json files or more")
    print(compare(names, [read(Path(name)) for name in names]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
