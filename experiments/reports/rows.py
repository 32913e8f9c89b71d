"""Runs as the rows of a report: one for each ablation and grid point, over its seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from experiments.configs.ablations import ABLATIONS
from experiments.reports.collect import Run


class Row(NamedTuple):
    """One line of a report: an ablation at one point of the grid, over its seeds."""

    label: str
    runs: tuple[Run, ...]


class Group(NamedTuple):
    """The rows of one data set, and what has to be said about them."""

    dataset: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def dataset_of(run: Run) -> str:
    """The data set with its options, as "fashion_mnist (pad_to=32)"; "" where not known."""
    options = {
        name.removeprefix("data."): value
        for name, value in run.training.items()
        if name.startswith("data.")
    }
    name = options.pop("name", "")
    more = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({more})" if more else str(name)


def _assignments(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


Key = tuple[str, str, str, str]  # config, ablation, grid point, settings


def _keys(runs: Sequence[Run]) -> list[Key]:
    """What makes a row. A run whose folder is missing takes the key of its like with another seed;
    one that no sweep began is a row by itself.
    """
    known: dict[str, Key] = {}
    for run in runs:
        if run.config:
            overrides, settings = _assignments(run.overrides), _assignments(run.settings)
            key = (run.config, run.ablation or "", overrides, settings)
            known.setdefault(run.name.rpartition("-seed")[0], key)

    def key_of(run: Run) -> Key:
        if run.config:
            overrides, settings = _assignments(run.overrides), _assignments(run.settings)
            return run.config, run.ablation or "", overrides, settings
        alone = ("", run.place or run.name, "", "")
        return alone if run.folder else known.get(run.name.rpartition("-seed")[0], alone)

    return [key_of(run) for run in runs]


def _without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs without those that are the same to the last digit, or that have not begun where a
    like one has; both are named.
    """
    kept: list[Run] = []
    left_out = []
    begun = {run.seed: run.place for run in reversed(runs) if run.state != "waiting"}
    for run in runs:
        like = next(
            (other for other in kept if other._replace(place=run.place, folder=run.folder) == run),
            None,
        )
        if run.state == "waiting" and run.seed in begun:
            if run.folder is not None:
                left_out.append(f"{run.place} has not begun; {begun[run.seed]} stands for it.")
        elif like is None:
            kept.append(run)
        elif run.folder is not None:
            left_out.append(f"{run.place} is a copy of {like.place} and counted once.")
    return kept, left_out


def _apart(label: str, runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """One row, or one for each place where a seed of it was run more than once."""
    seeds = Counter(run.seed for run in runs if run.seed is not None)
    twice = sorted(seed for seed, count in seeds.items() if count > 1)
    if not twice:
        return [Row(label, tuple(runs))], []
    places: dict[str, list[Run]] = {}
    for run in runs:
        places.setdefault(run.place.rpartition("/")[0] or ".", []).append(run)
    if any(max(Counter(run.seed for run in part).values()) > 1 for part in places.values()):
        places = {run.place: [run] for run in runs}
    warning = (
        f"{label}: seed {', '.join(map(str, twice))} is there more than once, with unlike content, "
        f"in {', '.join(places)}: shown apart, not averaged."
    )
    return [Row(f"{label} (in {place})", tuple(part)) for place, part in places.items()], [warning]


def _order(key: Key) -> int:
    """The configs themselves first, then the ablations as their list has them, then the rest."""
    names = ["", *ABLATIONS]
    return names.index(key[1]) if key[1] in names else len(names)


def group(runs: Sequence[Run]) -> list[Group]:
    """The runs by data set and row; rows in the order of the list of ablations."""
    keys = _keys(runs)
    where: dict[str, str] = {}  # config -> its data set, for runs that have not begun
    for run, key in zip(runs, keys, strict=True):
        where[key[0]] = where.get(key[0]) or dataset_of(run)
    by_dataset: dict[str, dict[Key, list[Run]]] = {}
    for run, key in zip(runs, keys, strict=True):
        name = dataset_of(run) or where[key[0]] or PurePosixPath(key[0]).stem or "unknown data"
        by_dataset.setdefault(name, {}).setdefault(key, []).append(run)
    groups = []
    for name, rows in by_dataset.items():
        several = {i for i in (0, 3) if len({key[i] for key in rows}) > 1}
        found: list[Row] = []
        warnings: list[str] = []
        for key in sorted(rows, key=_order):
            config, ablation, overrides, settings = key
            words = [ablation or PurePosixPath(config).stem, overrides]
            words += [settings] * (3 in several) + [config] * (0 in several)
            label = ", ".join(filter(None, words))
            kept, copies = _without_copies(sorted(rows[key], key=lambda run: run.seed or 0))
            apart, twice = _apart(label, kept)
            found += apart
            warnings += copies + twice
        groups.append(Group(name, tuple(found), tuple(warnings)))
    return groups


def states(row: Row) -> str:
    """How its runs stand, as "2/3 finished, 1 diverged"."""
    count = Counter(run.state for run in row.runs)
    done = f"{count.pop('finished', 0)}/{len(row.runs)} finished"
    return ", ".join([done, *(f"{number} {state}" for state, number in count.items())])
