"""The paper's Tables 1 to 4 cell by cell: how each is reproduced, and what was measured here.

    python -m launch.ledger docs/*/summary.json > docs/ledger.md

Each argument is a summary.json that `launch.report` wrote, or a folder of runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Parser, reported
from experiments.reports import ledger


@reported
def main(argv: Sequence[str]) -> int:
    """Prints the ledger of the summaries and folders that the command line names."""
    parser = Parser("launch.ledger", __doc__)
    parser.add_argument("runs", nargs="*", help="summaries, or folders of runs")
    parser.add_argument("--out", help="file to write; standard output where not given")
    options = parser.parse_args(argv)
    text = ledger.document(ledger.load_runs(options.runs))
    if options.out:
        Path(options.out).expanduser().write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
