"""Tables as GitHub's Markdown."""

import re
from collections.abc import Sequence


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def head(names: Sequence[str], numbers: int | None = None) -> str:
    """The first two lines of a table.

    Args:
        names: of the columns.
        numbers: the first of the columns that are set to the right; None: there are none.
    """
    numbers = len(names) if numbers is None else numbers
    rule = ["---" if column < numbers else "---:" for column in range(len(names))]
    return f"{row(names)}\n{row(rule)}"


def table(names: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """A whole table of cells that are Markdown already; see `head` and `plain`."""
    return "\n".join([head(names, numbers), *map(row, rows)])
