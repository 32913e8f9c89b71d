"""A table says the same as Markdown, as HTML and as LaTeX, whatever its text."""

import pathlib
import re
import shutil
from html.parser import HTMLParser

import pytest

from experiments.files import templates
from experiments.reports import render, report
from experiments.reports.render import Cell, Link, Table, latex_table
from tests.experiments.reports.made_runs import half_done
from tests.started import run

TABLE = Table(
    ("row|", "fd_train <samples>"),
    (
        (Cell("a & b_1"), Cell("6.87 ± 0.45", ("50% & more",), strong=True)),
        (Cell("*c*", links=(Link("0", "a/b.png"),)), Cell("–", muted=True)),
        (Cell("d"), Cell("7", ("50% & more", "other"))),
    ),
)


class _Cells(HTMLParser):
    """The texts of a table's cells, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def block(blocks: str, table: Table, escape_html: bool = False) -> str:
    """The block `table` of markdown.jinja or html.jinja, filled."""
    found = templates.environment(render.TEMPLATES, escape_html, embedded=str)
    return str(found.get_template(blocks).module.table(table))  # type: ignore[attr-defined]


def test_a_table_of_html_shows_the_text_and_numbers_the_notes() -> None:
    text = block("html.jinja", TABLE, escape_html=True)
    parser = _Cells()
    parser.feed(text.partition("</table>")[0])
    rows = [[" ".join(cell.split()) for cell in row] for row in parser.rows]
    assert rows[0] == ["row|", "fd_train <samples>"]
    assert [row[0] for row in rows[1:]] == ["a & b_1", "*c* 0", "d"]
    assert [row[1].replace(" ", "") for row in rows[1:]] == ["6.87±0.451", "–", "712"]
    assert "<strong>6.87 ± 0.45</strong>" in text and '<a href="a/b.png">0</a>' in text
    assert re.findall("<li>(.*)</li>", text) == ["50% &amp; more", "other"]


def test_a_table_of_markdown_numbers_the_notes() -> None:
    lines = block("markdown.jinja", TABLE).strip("\n").splitlines()
    assert lines[2] == r"| a & b_1 | **6.87 ± 0.45**<sup>1</sup> |"
    assert lines[1] == "| --- | ---: |" and lines[3] == r"| \*c\* [0](a/b.png) | – |"
    assert lines[4] == "| d | 7<sup>1</sup><sup>2</sup> |"
    lines = [line for line in lines[5:] if line]
    assert lines == ["<sup>1</sup> 50% & more  ", "<sup>2</sup> other  "]


def test_markdown_shows_what_would_be_markup() -> None:
    lines = block("markdown.jinja", Table(("a|b",), ((Cell("x | <y> *z*"),),))).split("\n")
    assert list(filter(None, lines)) == [r"| a\|b |", "| --- |", r"| x \| \<y\> \*z\* |"]


def test_a_table_of_latex_has_the_cells_of_its_head_in_every_row() -> None:
    text = latex_table(TABLE)
    inside = text.partition(r"\begin{tabular}{lr}")[2].partition(r"\end{tabular}")[0]
    rows = [line for line in inside.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(TABLE.rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert rows[1] == r"a \& b\_1 & \textbf{6.87 $\pm$ 0.45}\textsuperscript{1} \\"
    assert rows[2] == r"*c* & -- \\"
    assert r"\textsuperscript{1} 50\% \& more" in text.partition(r"\end{tabular}")[2]
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: texlive-latex-base")
def test_the_tables_of_a_report_compile(tmp_path: pathlib.Path) -> None:
    half_done(tmp_path / "sweep")
    report.write(tmp_path / "sweep", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tex"))
    assert names == ["bpd.tex", "headline.tex", "samples.tex"]
    (tmp_path / "out" / "odd.tex").write_text(latex_table(TABLE))
    inputs = "\n\n".join(rf"\input{{{name}}}" for name in [*names, "odd.tex"])
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    page = f"{head}{inputs}\\end{{document}}"
    (tmp_path / "out" / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = run(command, cwd=tmp_path / "out")
    assert "Missing character" not in done.stdout, done.stdout
