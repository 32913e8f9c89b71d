"""Runs below a folder as tables, pictures and one HTML page, with the paper's numbers beside them.

    python -m launch.report runs/sweep

writes runs/sweep/report, of a sweep or of a single run: report.md, report.html (one file with
everything in it), numbers.csv, runs.csv, the tables as LaTeX, summary.json (which `launch.ledger`
reads) and the pictures. The runs are only read; a sweep that is half done, and runs of several
machines copied below one folder, are reported as they are. A report's own summary.json in place of
the folder writes the report anew, beside it, without the runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Parser, reported
from experiments.reports import report


@reported
def main(argv: Sequence[str]) -> int:
    """Writes the report of the folder that the command line names."""
    parser = Parser("launch.report", __doc__)
    parser.add_argument("workdir", type=Path, help="folder of runs, or the summary of a report")
    parser.add_argument("--out", type=Path, help="folder to write to; WORKDIR/report if not given")
    parser.add_argument("--nolinks", action="store_true", help="leave out links to files of runs")
    parser.add_argument(
        "--sort", default="", help="order the rows by a quantity, such as bits_per_dim, best first"
    )
    options = parser.parse_args(argv)
    workdir = options.workdir.expanduser()
    out = workdir.parent if workdir.is_file() else workdir / "report"
    out = options.out.expanduser() if options.out else out
    report.write(workdir, out, links=not options.nolinks, sort=options.sort)
    print(f"{out / 'report.md'}\n{out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
