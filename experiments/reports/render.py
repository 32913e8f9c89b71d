"""Documents from templates, as Markdown and as one HTML page that needs nothing else.

A document, such as templates/report.jinja, is made of blocks (headings, tables, pictures) that
templates/markdown.jinja and templates/html.jinja both have. Tables are written as LaTeX too.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from experiments.files import latex, templates

TEMPLATES = Path(__file__).parent / "templates"


class Link(NamedTuple):
    """A word that leads to a file or an address."""

    text: str
    target: str


class Cell(NamedTuple):
    """What stands in one place of a table.

    notes: said below the table, under a number that the cell shows.
    """

    text: str = ""
    notes: tuple[str, ...] = ()
    strong: bool = False
    muted: bool = False
    links: tuple[Link, ...] = ()


class Table(NamedTuple):
    """A head and rows of equally many cells; columns from `numbers` on are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: int = 1

    @property
    def notes(self) -> dict[str, int]:
        """The notes in the order of their appearance, from 1."""
        notes = dict.fromkeys(note for row in self.rows for cell in row for note in cell.notes)
        return {note: number for number, note in enumerate(notes, 1)}


def by_columns(columns: Sequence[tuple[str, Sequence[Cell]]], numbers: int) -> Table:
    """The table of these columns, each its head and its cells."""
    head, cells = zip(*columns, strict=True)
    return Table(head, tuple(zip(*cells, strict=True)), numbers)


def latex_table(table: Table) -> str:
    r"""A table as a `tabular` of the package booktabs, with its notes below; links are left out."""
    found = templates.environment(TEMPLATES, latex=latex.plain)
    return found.get_template("latex.jinja").render(table=table)


def to_markdown(document: str, **content: Any) -> str:
    """A document as GitHub's Markdown; pictures are links to files beside it."""
    text = templates.render(TEMPLATES / document, **content, blocks="markdown.jinja")
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def to_html(document: str, folder: Path, **content: Any) -> str:
    """A document as one page with its pictures inside; nothing is fetched to show it.

    Args:
        document: the template.
        folder: where the pictures lie.
        content: what it is filled with; "title" is the page's own too.
    """

    def embedded(name: str) -> str:
        """A PNG as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"

    found = templates.environment(TEMPLATES, escape_html=True, embedded=embedded)
    body = found.get_template(document).render(content, blocks="html.jinja")
    return found.get_template("page.jinja").render(content, body=Markup(body))
