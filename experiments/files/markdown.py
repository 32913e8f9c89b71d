"""Tables as GitHub's Markdown."""

import re
from collections.abc import Sequence


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def head(names: Sequence[str]) -> str:
    """The first two lines of a table, from the names of its columns."""
    return f"{row(names)}\n{row(['---'] * len(names))}"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A whole table of cells that are Markdown already; see `plain`."""
    return "\n".join([head(names), *map(row, rows)])
