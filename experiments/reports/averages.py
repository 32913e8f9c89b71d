"""Numbers of rows: means over seeds, and what forbids taking or comparing them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports.collect import Run
from experiments.reports.rows import Row
from experiments.workdir.protocols import differences, written


class Value(NamedTuple):
    """A quantity over the seeds of one row.

    mean: None where there is nothing to average, or where it must not be.
    deviation: sample standard deviation over seeds (n - 1); None for a single seed.
    notes: what has to stand beside it.
    """

    text: str
    mean: float | None = None
    deviation: float | None = None
    num_seeds: int = 0
    notes: tuple[str, ...] = ()


class Section(NamedTuple):
    """One section of results.json over all rows of a group.

    values: one mapping a row, quantity -> Value, under the names without the extractor's.
    protocol: the fields that all runs share, but for the seed.
    """

    name: str
    quantities: tuple[str, ...]
    values: tuple[Mapping[str, Value], ...]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...]


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


def short(quantity: str, protocol: Mapping[str, Any]) -> str:
    """A quantity's name without the extractor's, which the protocol holds."""
    return quantity.replace(f"_{protocol.get('extractor')}", "")


def average(values: Sequence[float], unlike: str, num_runs: int) -> Value:
    """One quantity of several seeds.

    Args:
        values: one a seed; there is at least one.
        unlike: why they must not be averaged, or "".
        num_runs: how many the row has; fewer values are said to be so.
    """
    count = len(values)
    partial = f" (n = {count})" if count < num_runs else ""
    if unlike and count > 1:
        return Value(
            " / ".join(map(show, values)), num_seeds=count, notes=(f"not averaged: {unlike}",)
        )
    bad = [value for value in values if not math.isfinite(value)]
    if bad:
        return Value(f"not finite ({len(bad)} of {count})", num_seeds=count)
    mean = float(np.mean(values))
    if count == 1:
        return Value(show(mean) + partial, mean, None, 1)
    deviation = float(np.std(values, ddof=1))
    return Value(plus_minus(mean, deviation) + partial, mean, deviation, count)


# --- Sections ---


def why_apart(runs: Sequence[Run], section: str) -> str:
    """Why values of a section must not be averaged over these runs that have it, or ""."""
    protocols = [run.sections[section]["protocol"] for run in runs]
    unlike = differences(protocols, free=("seed",))
    unlike |= differences([run.training or None for run in runs], free=())
    return describe(unlike)


def _row_values(row: Row, section: str) -> dict[str, Value]:
    """Every quantity of a section over one row."""
    having = [run for run in row.runs if section in run.sections]
    if not having:
        return {}
    found: dict[str, list[float]] = {}
    for run in having:
        part = run.sections[section]
        for quantity, value in part["values"].items():
            found.setdefault(short(quantity, part["protocol"]), []).append(float(value["value"]))
    unlike = why_apart(having, section)
    return {name: average(values, unlike, len(row.runs)) for name, values in found.items()}


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _odd_protocols(rows: Sequence[Row], section: str) -> dict[int, str]:
    """Rows whose protocol is not that of most rows, with the fields that differ."""
    first = {
        i: next(run.sections[section]["protocol"] for run in row.runs if section in run.sections)
        for i, row in enumerate(rows)
        if any(section in run.sections for run in row.runs)
    }
    unlike = differences(list(first.values()))
    if not unlike:
        return {}
    seen = {i: tuple(written(first[i].get(field, "absent")) for field in unlike) for i in first}
    usual = _most_common(seen.values())
    return {
        i: "; ".join(
            f"{field} = {value}, in most rows {other}"
            for field, value, other in zip(unlike, fields, usual, strict=True)
            if value != other
        )
        for i, fields in seen.items()
        if fields != usual
    }


def commits_of(runs: Iterable[Run], section: str) -> list[str]:
    """The version of the code behind a section, for each run that has it."""
    origins = [run.sections[section]["provenance"] for run in runs if section in run.sections]
    return [str(origin.get("commit", "unknown")) for origin in origins]


def short_commit(commit: str) -> str:
    """Ten digits of a commit, with the mark of uncommitted changes."""
    digits, dash, mark = commit.partition("-")
    return digits[:10] + dash + mark


def _odd_commits(rows: Sequence[Row], section: str) -> tuple[dict[int, str], list[str]]:
    """Rows measured by other code than most runs, and what is to be said about all."""
    by_row = {i: commits_of(row.runs, section) for i, row in enumerate(rows)}
    every = [commit for commits in by_row.values() for commit in commits]
    distinct = list(dict.fromkeys(every))
    warnings = []
    for kind, words in (("-dirty", "uncommitted changes"), ("unknown", "unknown version")):
        if any(kind in commit for commit in distinct):
            warnings.append(f"some numbers come from code with {words}.")
    if len(distinct) < 2:
        return {}, warnings
    usual = _most_common(every)
    named = ", ".join(map(short_commit, distinct))
    warnings.append(f"numbers of {len(distinct)} versions of the code: {named}.")
    notes = {}
    for i, commits in by_row.items():
        if set(commits) - {usual}:
            own = " and ".join(map(short_commit, dict.fromkeys(commits)))
            notes[i] = f"code {own}, mostly {short_commit(usual)}"
    return notes, warnings


def _unlike_counts(rows: Sequence[Row], section: str) -> list[str]:
    """What is to be said where rows have unlike numbers of seeds or of training steps."""
    warnings = []
    counts = {
        row.label: sum(section in run.sections for run in row.runs)
        for row in rows
        if any(section in run.sections for run in row.runs)
    }
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{label} {count}" for label, count in counts.items())
        warnings.append(f"unlike numbers of seeds: {words}.")
    steps: dict[Any, list[str]] = {}
    for row in rows:
        for run in row.runs:
            if section in run.sections:
                step = run.sections[section]["protocol"].get("checkpoint_step")
                if row.label not in steps.setdefault(step, []):
                    steps[step].append(row.label)
    if len(steps) > 1:
        words = "; ".join(f"{step}: {', '.join(labels)}" for step, labels in steps.items())
        warnings.append(f"rows were trained for unlike numbers of steps: {words}.")
    return warnings


def _shared(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    unlike = differences(protocols, free=())
    shared = [name for name in names if name not in (*unlike, "seed")]
    return {name: next(p[name] for p in protocols if name in p) for name in shared}


def sections(rows: Sequence[Row]) -> list[Section]:
    """Every section that any run has, with each row's values and what is odd about them."""
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.sections)
    found = []
    for name in names:
        protocols_odd = _odd_protocols(rows, name)
        commits_odd, warnings = _odd_commits(rows, name)
        warnings = [
            *(f"{rows[i].label}: not comparable, {why}." for i, why in protocols_odd.items()),
            *warnings,
            *_unlike_counts(rows, name),
        ]
        values = []
        for i, row in enumerate(rows):
            notes = [f"not comparable: {protocols_odd[i]}"] if i in protocols_odd else []
            notes += [commits_odd[i]] if i in commits_odd else []
            own = _row_values(row, name)
            apart = next((note for value in own.values() for note in value.notes), "")
            if apart:
                warnings.append(f"{row.label}: {apart}.")
            values.append({q: v._replace(notes=(*v.notes, *notes)) for q, v in own.items()})
        protocols = [
            run.sections[name]["protocol"]
            for row in rows
            for run in row.runs
            if name in run.sections
        ]
        quantities = tuple(dict.fromkeys(quantity for own in values for quantity in own))
        found.append(Section(name, quantities, tuple(values), _shared(protocols), tuple(warnings)))
    return found
