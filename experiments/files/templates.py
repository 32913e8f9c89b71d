"""Documents from jinja2 templates, which lie beside the code that fills them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.files import markdown


def environment(
    folder: Path, escape_html: bool = False, **filters: Callable[..., str]
) -> Environment:
    """The templates of a folder; a name that nothing defines is an error.

    Args:
        folder: where they lie.
        escape_html: whether what is put into them is text, to be shown as it is in HTML.
        filters: what they may call, beside `plain`.
    """
    found = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=escape_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"plain": markdown.plain, **filters}
    return found


def render(path: Path, **content: Any) -> str:
    """One template, filled."""
    return environment(path.parent).get_template(path.name).render(content)
