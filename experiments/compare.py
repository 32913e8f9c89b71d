"""Lays the numbers of runs side by side: python -m experiments.compare RUN RUN ..."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.reports.compare import compare, read


def main(argv: Sequence[str]) -> int:
    """Prints the table of the files that the command line names."""
    if len(argv) < 3 or any(word.startswith("-") for word in argv[1:]):
        print("usage: python -m experiments.compare A/results.json B/results.json ...")
        return 2
    try:
        print(compare(argv[1:], [read(Path(name)) for name in argv[1:]]))
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
