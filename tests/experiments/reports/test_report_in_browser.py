"""The page of a report as a browser shows it: tables and pictures are there, nothing is fetched."""

import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.reports import report
from tests.experiments.reports.made_runs import half_done
from tests.started import run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ),
)


def browse(page: pathlib.Path, profile: pathlib.Path, *options: str) -> tuple[str, str]:
    """What the browser prints for the page: its output, and its log."""
    assert BROWSER is not None
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    command = [BROWSER, *QUIET, *root, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = run(command, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_a_browser_shows_the_page(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path / "sweep")
    out = tmp_path / "report"
    report.write(tmp_path / "sweep", out)
    page = out / "report.html"

    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script>null.field</script>")
    assert "CONSOLE" in browse(wrong, tmp_path / "profile", "--dump-dom")[1]

    dom, messages = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in messages, messages
    body = dom.partition("<body>")[2]
    # Headline, samples, and one each for bpd, samples and the runs.
    assert body.count("<table>") == body.count("</table>") == 5
    for table in re.findall(r"<thead>.*?</tbody>", body, re.DOTALL):
        width = len(re.findall(r"<th[ >]", table))
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        assert rows and {len(re.findall("<t[hd][ >]", row)) for row in rows} == {width}

    shot = tmp_path / "page.png"
    size = ("--window-size=1280,3000", "--force-device-scale-factor=1")
    _, messages = browse(page, tmp_path / "profile", f"--screenshot={shot}", *size)
    assert "CONSOLE" not in messages, messages
    seen = np.asarray(Image.open(shot).convert("L"))
    for strip in sorted(out.glob("samples*.png")):
        line = np.asarray(Image.open(strip))[24, 100:400]
        assert found_in(line, seen), f"{strip.name} is not to be seen"
    assert not found_in(line[::-1], seen)


def found_in(line: np.ndarray, seen: np.ndarray) -> bool:
    """Whether a line of grey values is somewhere in the picture."""
    width = seen.shape[1] - len(line)
    match = np.ones((seen.shape[0], width), bool)
    for i in range(0, len(line), 5):
        match &= seen[:, i : i + width] == line[i]
    return bool(match.any())
