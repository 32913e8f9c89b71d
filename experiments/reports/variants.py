"""Which runs belong together: a data set's variants of the config, each over its seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from experiments.configs.ablations import ABLATIONS
from experiments.workdir.run import Run


class Variant(NamedTuple):
    """One row of a report: an ablation at one point of the grid, over its seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def states(self) -> str:
        """How its runs stand, as "2/3 finished, 1 diverged"."""
        count = Counter(run.state for run in self.runs)
        done = f"{count.pop('finished', 0)}/{len(self.runs)} finished"
        return ", ".join([done, *(f"{number} {state}" for state, number in count.items())])


class DatasetRuns(NamedTuple):
    """The variants that were trained on one data set, and what has to be said about them."""

    dataset: str
    variants: tuple[Variant, ...]
    warnings: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        return [run for variant in self.variants for run in variant.runs]


class _Key(NamedTuple):
    """What the runs of one variant share."""

    config: str = ""
    ablation: str = ""
    overrides: str = ""
    settings: str = ""


def dataset_of(training: Mapping[str, Any]) -> str:
    """The data set with its options, as "fashion_mnist (pad_to=32)"; "" where not known."""
    options = {
        name.removeprefix("data."): value
        for name, value in training.items()
        if name.startswith("data.") and value not in (None, [], ())
    }
    name = options.pop("name", "")
    more = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({more})" if more else str(name)


def _keys(runs: Sequence[Run]) -> list[_Key]:
    """The key of each run. One whose folder is missing takes that of its like with another seed;
    one that no sweep began is a variant by itself.
    """

    def own(run: Run) -> _Key:
        points = (run.overrides, run.settings)
        overrides, settings = (", ".join(f"{k}={v}" for k, v in p.items()) for p in points)
        return _Key(run.config, run.ablation or "", overrides, settings)

    known = {run.name.rpartition("-seed")[0]: own(run) for run in reversed(runs) if run.config}
    keys = []
    for run in runs:
        alone = _Key(ablation=run.place or run.name)
        like = alone if run.folder else known.get(run.name.rpartition("-seed")[0], alone)
        keys.append(own(run) if run.config else like)
    return keys


def _without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs without those that are the same to the last digit, or that have not begun where a
    like one has; both are named.
    """
    kept: list[Run] = []
    left_out = []
    begun = {run.seed: run.place for run in reversed(runs) if run.state != "waiting"}
    for run in runs:
        same = [k for k in kept if k._replace(place=run.place, folder=run.folder) == run]
        if run.state == "waiting" and run.seed in begun:
            words = f"{run.place} has not begun; {begun[run.seed]} stands for it."
        elif same:
            words = f"{run.place} is a copy of {same[0].place} and counted once."
        else:
            kept.append(run)
            continue
        left_out += [words] * (run.folder is not None)
    return kept, left_out


def _split_repeated_seeds(label: str, runs: Sequence[Run]) -> tuple[list[Variant], list[str]]:
    """One variant, or one for each place where a seed of it was run more than once."""
    seeds = Counter(run.seed for run in runs if run.seed is not None)
    twice = sorted(seed for seed, count in seeds.items() if count > 1)
    if not twice:
        return [Variant(label, tuple(runs))], []
    places: dict[str, list[Run]] = {}
    for run in runs:
        places.setdefault(run.place.rpartition("/")[0] or ".", []).append(run)
    if any(max(Counter(run.seed for run in part).values()) > 1 for part in places.values()):
        places = {run.place: [run] for run in runs}
    warning = (
        f"{label}: seed {', '.join(map(str, twice))} is there more than once, with unlike content, "
        f"in {', '.join(places)}: shown apart, not averaged."
    )
    apart = [Variant(f"{label} (in {place})", tuple(part)) for place, part in places.items()]
    return apart, [warning]


def _order(key: _Key) -> int:
    """The configs themselves first, then the ablations as their list has them, then the rest."""
    names = ["", *ABLATIONS]
    return names.index(key.ablation) if key.ablation in names else len(names)


def group_runs(runs: Sequence[Run]) -> list[DatasetRuns]:
    """The runs by data set and variant; variants in the order of the list of ablations."""
    keys = _keys(runs)
    where: dict[str, str] = {}  # config -> its data set, for runs that have not begun
    for run, key in zip(runs, keys, strict=True):
        where[key.config] = where.get(key.config) or dataset_of(run.training)
    datasets: dict[str, dict[_Key, list[Run]]] = {}
    for run, key in zip(runs, keys, strict=True):
        known = dataset_of(run.training) or where[key.config]
        name = known or PurePosixPath(key.config).stem or "unknown data"
        datasets.setdefault(name, {}).setdefault(key, []).append(run)
    found = []
    for name, by_key in datasets.items():
        several = [len(set(values)) > 1 for values in zip(*by_key, strict=True)]
        variants: list[Variant] = []
        warnings: list[str] = []
        for key in sorted(by_key, key=_order):
            words = [key.ablation or PurePosixPath(key.config).stem, key.overrides]
            words += [key.settings] * several[3] + [key.config] * several[0]
            label = ", ".join(filter(None, words))
            kept, copies = _without_copies(sorted(by_key[key], key=lambda run: run.seed or 0))
            apart, twice = _split_repeated_seeds(label, kept)
            variants += apart
            warnings += copies + twice
        found.append(DatasetRuns(name, tuple(variants), tuple(warnings)))
    return found
