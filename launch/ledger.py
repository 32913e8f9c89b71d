"""The paper's Tables 1 to 4 cell by cell: how each is reproduced, and what was measured here.

    python -m launch.ledger docs/*/summary.json > docs/ledger.md

Each argument is a summary.json that `launch.report` wrote, or a folder of runs.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.reports import ledger, render

OUT = flags.DEFINE_string("out", None, "File to write; standard output where not given.")


def main(argv: list[str]) -> int:
    """Prints the ledger of the summaries and folders that the command line names."""
    try:
        text = render.to_markdown(ledger.document(ledger.load(argv[1:])))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if OUT.value:
        Path(OUT.value).expanduser().write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    app.run(main)
