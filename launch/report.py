"""Runs below a folder as tables, pictures and one HTML page, with the paper's numbers beside them.

    python -m launch.report runs/sweep

writes runs/sweep/report: report.md, report.html (one file with everything in it), numbers.csv,
runs.csv, summary.json (which `launch.ledger` reads) and the pictures. The runs are only read; a
sweep that is half done, and runs of several machines copied below one folder, are reported as they
are.
"""

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.configs.files import write_json
from launch import contents, layout, page
from launch.collect import collect, to_summary
from launch.rows import group

OUT = flags.DEFINE_string("out", None, "Folder to write to; WORKDIR/report where not given.")
LINKS = flags.DEFINE_bool(
    "links", True, "Link to the files of the runs; --nolinks for a report that leaves them behind."
)


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])


def write(workdir: Path, out: Path, links: bool = True) -> None:
    """Writes the report of the runs below `workdir` into the folder `out`.

    Raises:
        FileNotFoundError: if there are no runs.
        ValueError: if `out` lies inside a run.
    """
    collection = collect(workdir)
    for run in collection.runs:
        if run.folder is not None and run.folder.resolve() in (
            out.resolve(),
            *out.resolve().parents,
        ):
            raise ValueError(f"{out} lies in the run {run.folder}: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    groups = group(collection.runs)
    base = os.path.relpath(workdir, out) if links else None
    blocks = contents.document(collection, groups, out, base)
    title = contents.title(groups)
    (out / "report.md").write_text(page.to_markdown(blocks))
    (out / "report.html").write_text(page.to_html(title, blocks, out))
    _write_csv(out / "numbers.csv", layout.NUMBERS, layout.numbers(groups))
    _write_csv(out / "runs.csv", layout.RUNS, layout.run_lines(groups))
    write_json(out / "summary.json", to_summary(collection))


def main(argv: list[str]) -> int:
    """Writes the report of the folder that the command line names."""
    if len(argv) != 2:
        print("usage: python -m launch.report WORKDIR [--out=FOLDER] [--nolinks]", file=sys.stderr)
        return 2
    workdir = Path(argv[1]).expanduser()
    out = Path(OUT.value).expanduser() if OUT.value else workdir / "report"
    try:
        write(workdir, out, LINKS.value)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out / 'report.md'}\n{out / 'report.html'}")
    return 0


if __name__ == "__main__":
    app.run(main)
