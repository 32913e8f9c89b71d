"""Means over seeds, and what forbids taking or comparing them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports import paper
from experiments.reports.variants import DatasetRuns, Variant
from experiments.workdir.protocols import differences, written
from experiments.workdir.run import Run

COLUMNS = (
    *("data", "row", "section", "quantity", "mean", "deviation", "seeds", "runs", "text"),
    *("paper", "paper_heading", "notes"),
)


class Value(NamedTuple):
    """A quantity over the seeds of one variant.

    mean: None where there is nothing to average, or where it must not be.
    deviation: sample standard deviation over seeds (n - 1); None for a single seed.
    notes: what has to stand beside it.
    """

    text: str
    mean: float | None = None
    deviation: float | None = None
    notes: tuple[str, ...] = ()


class Numbers(NamedTuple):
    """Everything that was measured on one data set.

    table: a line for every section, variant and quantity, with the columns COLUMNS; notes are
        tuples, and "seeds" is 0 where no run of the variant has the quantity.
    protocols: section -> the fields that all its values share, but for the seed.
    warnings: section -> what is odd about its values.
    """

    table: pd.DataFrame
    protocols: dict[str, dict[str, Any]]
    warnings: dict[str, list[str]]


# --- Numbers ---


def show(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def plus_minus(mean: float, deviation: float) -> str:
    """A mean with as many decimals as the first two digits of its deviation have."""
    if not deviation > 1e-12 * abs(mean):  # equal but for the rounding of their mean
        return f"{show(mean)} ± 0"
    decimals = min(6, max(0, 1 - math.floor(math.log10(deviation))))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def describe(unlike: Mapping[str, Sequence[Any]]) -> str:
    """Fields that differ, as "split: test / train; ..."."""
    return "; ".join(f"{k}: {' / '.join(dict.fromkeys(map(str, v)))}" for k, v in unlike.items())


def average(values: Sequence[float], unlike: str, num_runs: int) -> Value:
    """One quantity of several seeds.

    Args:
        values: one a seed; there is at least one.
        unlike: why they must not be averaged, or "".
        num_runs: how many the variant has; fewer values are said to be so.
    """
    count = len(values)
    partial = f" (n = {count})" if count < num_runs else ""
    if unlike and count > 1:
        return Value(" / ".join(map(show, values)), notes=(f"not averaged: {unlike}",))
    bad = [value for value in values if not math.isfinite(value)]
    if bad:
        return Value(f"not finite ({len(bad)} of {count})")
    mean = float(np.mean(values))
    if count == 1:
        return Value(show(mean) + partial, mean)
    deviation = float(np.std(values, ddof=1))
    return Value(plus_minus(mean, deviation) + partial, mean, deviation)


def why_not_averaged(runs: Sequence[Run], section: str) -> str:
    """Why values of a section must not be averaged over these runs that have it, or ""."""
    unlike = differences([run.sections[section].protocol for run in runs], free=("seed",))
    return describe(unlike | differences([run.training or None for run in runs], free=()))


def short_commit(commit: str) -> str:
    """Ten digits of a commit, with the mark of uncommitted changes."""
    digits, dash, mark = commit.partition("-")
    return digits[:10] + dash + mark


# --- What is odd about a section ---


def _most_common(values: Sequence[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _odd_protocols(first: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Variants whose protocol is not that of most, with the fields that differ.

    Args:
        first: label -> the protocol of the variant's first run.
    """
    unlike = differences(list(first.values()))
    seen = {
        label: tuple(written(protocol.get(field, "absent")) for field in unlike)
        for label, protocol in first.items()
    }
    usual = _most_common(list(seen.values()))
    return {
        label: "; ".join(
            f"{field} = {value}, in most rows {other}"
            for field, value, other in zip(unlike, fields, usual, strict=True)
            if value != other
        )
        for label, fields in seen.items()
        if fields != usual
    }


def _odd_commits(runs: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Variants measured by other code than most runs, and what is to be said about all."""
    distinct = list(runs["commit"].unique())
    warnings = [
        f"some numbers come from code with {words}."
        for kind, words in (("-dirty", "uncommitted changes"), ("unknown", "unknown version"))
        if any(kind in commit for commit in distinct)
    ]
    if len(distinct) < 2:
        return {}, warnings
    usual = _most_common(list(runs["commit"]))
    named = ", ".join(map(short_commit, distinct))
    warnings.append(f"numbers of {len(distinct)} versions of the code: {named}.")
    own = runs.groupby("row", sort=False)["commit"].unique()
    return {
        label: f"code {' and '.join(map(short_commit, commits))}, mostly {short_commit(usual)}"
        for label, commits in own.items()
        if set(commits) - {usual}
    }, warnings


def _unlike_counts(runs: pd.DataFrame) -> Iterator[str]:
    """What is to be said where variants have unlike numbers of seeds or of training steps."""
    counts = runs.groupby("row", sort=False).size()
    if counts.nunique() > 1:
        words = ", ".join(f"{label} {count}" for label, count in counts.items())
        yield f"unlike numbers of seeds: {words}."
    steps = runs.groupby("step", sort=False)["row"].unique()
    if len(steps) > 1:
        words = "; ".join(f"{step}: {', '.join(labels)}" for step, labels in steps.items())
        yield f"rows were trained for unlike numbers of steps: {words}."


def _odd(variants: Sequence[Variant], section: str) -> tuple[dict[str, list[str]], list[str]]:
    """Notes on the variants that have a section, by label, and warnings on the section."""
    having = [(v.label, r) for v in variants for r in v.runs if section in r.sections]
    first: dict[str, Mapping[str, Any]] = {}
    for label, run in having:
        first.setdefault(label, run.sections[section].protocol)
    lines = [
        (
            label,
            str(run.sections[section].provenance.get("commit", "unknown")),
            str(run.sections[section].protocol.get("checkpoint_step")),
        )
        for label, run in having
    ]
    runs = pd.DataFrame(lines, columns=["row", "commit", "step"])
    protocols = _odd_protocols(first)
    commits, warnings = _odd_commits(runs)
    notes = {label: [f"not comparable: {why}"] for label, why in protocols.items()}
    for label, note in commits.items():
        notes.setdefault(label, []).append(note)
    apart = [f"{label}: not comparable, {why}." for label, why in protocols.items()]
    return notes, [*apart, *warnings, *_unlike_counts(runs)]


def _shared(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that the protocols share, but for the seed."""
    unlike = {*differences(protocols, free=()), "seed"}
    return {name: value for name, value in protocols[0].items() if name not in unlike}


# --- All numbers ---


def long_table(part: DatasetRuns) -> pd.DataFrame:
    """One line for every measured value: section, row, seed, quantity, value.

    A quantity goes by its name without the extractor's, which the protocol holds.
    """
    names = dict.fromkeys(name for run in part.runs for name in run.sections)
    lines = [
        (
            name,
            variant.label,
            run.seed,
            quantity.replace(f"_{run.sections[name].protocol.get('extractor')}", ""),
            float(number["value"]),
        )
        for name in names
        for variant in part.variants
        for run in variant.runs
        if name in run.sections
        for quantity, number in run.sections[name].values.items()
    ]
    return pd.DataFrame(lines, columns=["section", "row", "seed", "quantity", "value"])


def numbers(part: DatasetRuns) -> Numbers:
    """The means over seeds of everything that the runs have measured."""
    table = long_table(part)
    found = {
        key: list(values)
        for key, values in table.groupby(["section", "row", "quantity"], sort=False)["value"]
    }
    lines: list[tuple[Any, ...]] = []
    protocols, warnings = {}, {}
    for name, of_section in table.groupby("section", sort=False):
        odd, warnings[name] = _odd(part.variants, name)
        having = [run for run in part.runs if name in run.sections]
        protocols[name] = _shared([run.sections[name].protocol for run in having])
        for variant in part.variants:
            runs = [run for run in variant.runs if name in run.sections]
            unlike = why_not_averaged(runs, name)
            if unlike and len(runs) > 1:
                warnings[name].append(f"{variant.label}: not averaged: {unlike}.")
            for quantity in of_section["quantity"].unique():
                values = found.get((name, variant.label, quantity), [])
                value = average(values, unlike, len(variant.runs)) if values else Value("")
                cell = paper.published_beside((runs or variant.runs)[0], name, quantity)
                own = (*value.notes, *odd.get(variant.label, ())) if values else ()
                lines.append(
                    (
                        *(part.dataset, variant.label, name, quantity),
                        *(value.mean, value.deviation, len(values), len(variant.runs), value.text),
                        *((cell.text, cell.heading) if cell else ("", "")),
                        own,
                    )
                )
    return Numbers(pd.DataFrame(lines, columns=list(COLUMNS), dtype=object), protocols, warnings)
