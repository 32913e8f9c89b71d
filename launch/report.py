"""Runs below a folder as tables, pictures and one HTML page, with the paper's numbers beside them.

    python -m launch.report runs/sweep

writes runs/sweep/report: report.md, report.html (one file with everything in it), numbers.csv,
runs.csv, summary.json (which `launch.ledger` reads) and the pictures. The runs are only read; a
sweep that is half done, and runs of several machines copied below one folder, are reported as they
are.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.reports import report

OUT = flags.DEFINE_string("out", None, "Folder to write to; WORKDIR/report where not given.")
LINKS = flags.DEFINE_bool(
    "links", True, "Link to the files of the runs; --nolinks for a report that leaves them behind."
)


def main(argv: list[str]) -> int:
    """Writes the report of the folder that the command line names."""
    if len(argv) != 2:
        print("usage: python -m launch.report WORKDIR [--out=FOLDER] [--nolinks]", file=sys.stderr)
        return 2
    workdir = Path(argv[1]).expanduser()
    out = Path(OUT.value).expanduser() if OUT.value else workdir / "report"
    try:
        report.write(workdir, out, LINKS.value)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out / 'report.md'}\n{out / 'report.html'}")
    return 0


if __name__ == "__main__":
    app.run(main)
