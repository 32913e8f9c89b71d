"""A document of a few kinds of blocks, as Markdown and as one HTML page that needs nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


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


class Heading(NamedTuple):
    """A title; level 1 is the page's own."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """Running text."""

    text: str
    links: tuple[Link, ...] = ()


class Items(NamedTuple):
    """A list; `warning` sets it apart."""

    items: tuple[str, ...]
    warning: bool = False


class Picture(NamedTuple):
    """A PNG in the report's folder."""

    name: str
    alt: str


class Strips(NamedTuple):
    """Labelled pictures below each other; a missing one has a reason in place of its name."""

    rows: tuple[tuple[str, Picture | str], ...]


class Table(NamedTuple):
    """A head and rows of equally many cells; columns from `numbers` on are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: int = 1


class Log(NamedTuple):
    """Lines of a program's output."""

    title: str
    lines: tuple[str, ...]


class Commands(NamedTuple):
    """Lines for a shell."""

    lines: tuple[str, ...]


class Folded(NamedTuple):
    """Blocks that a reader opens when they want them."""

    title: str
    blocks: tuple["Block", ...]


Block = Heading | Paragraph | Items | Picture | Strips | Table | Log | Commands | Folded


def _numbered(table: Table) -> dict[str, int]:
    """The notes of a table in the order of their appearance, from 1."""
    notes = dict.fromkeys(note for row in table.rows for cell in row for note in cell.notes)
    return {note: number for number, note in enumerate(notes, 1)}


# --- Markdown ---


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def _table_markdown(table: Table) -> str:
    numbers = _numbered(table)

    def cell(content: Cell) -> str:
        text = _plain(content.text)
        text = f"**{text}**" if content.strong and text else text
        marks = "".join(f"<sup>{numbers[note]}</sup>" for note in content.notes)
        links = " ".join(f"[{_plain(link.text)}]({link.target})" for link in content.links)
        return " ".join(filter(None, [text + marks, links])) or "–"

    rule = ["---" if i < table.numbers else "---:" for i in range(len(table.head))]
    rows = [[_plain(name) for name in table.head], rule]
    rows += [[cell(content) for content in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"<sup>{number}</sup> {_plain(note)}  " for note, number in numbers.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as GitHub's Markdown; pictures are links to files beside it."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {_plain(text)}")
            case Paragraph(text, links):
                more = [f"[{link.text}]({link.target})" for link in links]
                parts.append(" ".join([_plain(text), *more]))
            case Items(items):
                parts.append("\n".join(f"- {_plain(item)}" for item in items))
            case Picture(name, alt):
                parts.append(f"![{_plain(alt)}]({name})")
            case Strips(rows):
                shown = [
                    f"| {_plain(label)} | "
                    + (_plain(what) if isinstance(what, str) else f"![{what.alt}]({what.name})")
                    + " |"
                    for label, what in rows
                ]
                parts.append("\n".join(["| row | samples |", "| --- | --- |", *shown]))
            case Table():
                parts.append(_table_markdown(block))
            case Log(title, lines):
                text = "\n".join(f"    {line}" for line in lines)  # no fence that a log could close
                parts.append(f"{_plain(title)}\n\n{text}")
            case Commands(lines):
                parts.append("\n".join(["```bash", *lines, "```"]))
            case Folded(title, inner):
                parts += [f"### {_plain(title)}", to_markdown(inner).rstrip("\n")]
    return "\n\n".join(parts) + "\n"


# --- HTML ---

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --paper: #fff; --soft: #5d646d; --line: #d9dde2;
  --shade: #f4f6f8; --link: #0b57d0; --warn: #8a4b00; --warn-shade: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --paper: #16181c; --soft: #9aa3ad;
  --line: #343a42; --shade: #1f2329; --link: #8ab4f8; --warn: #f2c078; --warn-shade: #33270f; } }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; color: var(--text);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.3rem; margin: 2.2rem 0 .5rem;
  padding-top: .8rem; border-top: 1px solid var(--line); } h3 { font-size: 1.05rem;
  margin: 1.5rem 0 .4rem; } p, ul { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); } sup { font-size: .7em; color: var(--warn); padding-left: .15em; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { font-weight: 600; background: var(--shade); vertical-align: bottom; }
td.number { text-align: right; white-space: nowrap; } th.number { text-align: right; }
td:first-child { white-space: nowrap; } tbody tr:hover td { background: var(--shade); }
.muted, .notes { color: var(--soft); } .notes { font-size: .85rem; padding-left: 1.4rem; }
.warning { background: var(--warn-shade); color: var(--warn); padding: .6rem 1rem .6rem 2rem;
  border-radius: 6px; } img { max-width: 100%; height: auto; border-radius: 4px; }
img.chart { background: #fff; } td img { display: block; image-rendering: pixelated; }
pre { background: var(--shade); padding: .7rem 1rem; overflow-x: auto; border-radius: 6px;
  font-size: .82rem; } summary { cursor: pointer; font-weight: 600; margin: .8rem 0; }
"""


def _link(link: Link) -> str:
    return f'<a href="{html.escape(link.target)}">{html.escape(link.text)}</a>'


def _image(picture: Picture, folder: Path, kind: str) -> str:
    data = base64.b64encode((folder / picture.name).read_bytes()).decode()
    alt = html.escape(picture.alt)
    return f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{data}">'


def _table_html(table: Table) -> str:
    numbers = _numbered(table)

    def kind(column: int, cell: Cell | None = None) -> str:
        names = ["number"] * (column >= table.numbers) + ["muted"] * (
            cell is not None and cell.muted
        )
        return f' class="{" ".join(names)}"' if names else ""

    def content(cell: Cell) -> str:
        text = html.escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.strong else text
        marks = "".join(
            f'<sup title="{html.escape(note)}">{numbers[note]}</sup>' for note in cell.notes
        )
        return " ".join(filter(None, [text + marks, *map(_link, cell.links)])) or "–"

    head = "".join(f"<th{kind(i)}>{html.escape(name)}</th>" for i, name in enumerate(table.head))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind(i, c)}>{content(c)}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in numbers)
    notes = f'\n<ol class="notes">{notes}</ol>' if notes else ""
    start = f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>'
    return f"{start}\n<tbody>\n{rows}\n</tbody></table></div>{notes}"


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text, links):
            return f"<p>{' '.join([html.escape(text), *map(_link, links)])}</p>"
        case Items(items, warning):
            inner = "".join(f"<li>{html.escape(item)}</li>" for item in items)
            return f'<ul class="warning">{inner}</ul>' if warning else f"<ul>{inner}</ul>"
        case Picture():
            return f"<p>{_image(block, folder, 'chart')}</p>"
        case Strips(rows):
            shown = "\n".join(
                f"<tr><td>{html.escape(label)}</td><td>"
                + (html.escape(what) if isinstance(what, str) else _image(what, folder, "strip"))
                + "</td></tr>"
                for label, what in rows
            )
            return f'<div class="wide"><table>\n{shown}\n</table></div>'
        case Table():
            return _table_html(block)
        case Log(title, lines):
            return f"<p>{html.escape(title)}</p>\n<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Commands(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Folded(title, inner):
            body = "\n".join(_html(part, folder) for part in inner)
            return f"<details><summary>{html.escape(title)}</summary>\n{body}\n</details>"


def to_html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The document as one page with its pictures inside; nothing is fetched to show it.

    Args:
        folder: where the pictures lie.
    """
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
