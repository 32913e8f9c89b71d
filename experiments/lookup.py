"""The one way from a name in a config to code."""

import contextlib
import difflib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """The entry of `table` called `name`.

    Raises:
        ValueError: saying what came, what is accepted, and where in the config.
    """
    if name not in table:
        raise ValueError(f"config.{where} = {name!r} is not known. {suggestion(name, table)}")
    return table[name]


def keywords(entry: Any, supplied: tuple[str, ...] = ()) -> list[str]:
    """The parameters of a table's entry that a config may set.

    Those that are positional-only, or listed in `supplied`, belong to the program.
    """
    if not callable(entry):
        return []
    return [
        parameter.name
        for parameter in inspect.signature(entry).parameters.values()
        if parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name not in supplied
    ]


def lookup(
    table: Mapping[str, Any], spec: Mapping[str, Any], where: str, supplied: tuple[str, ...] = ()
) -> Any:
    """The entry of `table` that `spec` = {name, **keywords} asks for, its keywords bound.

    Every keyword that the config sets must be one of the entry's `keywords`.

    Raises:
        ValueError: saying what came, what is accepted, and where in the config.
    """
    given = dict(spec)
    name = given.pop("name", None)
    entry = choose(table, name, f"{where}.name")
    accepted = keywords(entry, supplied)
    unknown = [keyword for keyword in given if keyword not in accepted]
    if unknown:
        raise ValueError(
            f"config.{where} has {', '.join(map(repr, unknown))}, which {name!r} does not take. "
            f"It accepts: {', '.join(accepted) or 'no keyword'}."
        )
    return functools.partial(entry, **given) if callable(entry) else entry


@contextlib.contextmanager
def naming_field(where: str) -> Iterator[None]:
    """Puts the config's field in front of the message of a ValueError that does not name it."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("config."):
            raise
        raise ValueError(f"config.{where}: {error}") from error


def suggestion(name: object, known: Iterable[str]) -> str:
    """What ends the message of an error where `name` is none of those that are known."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Choose one of: {', '.join(names)}."
