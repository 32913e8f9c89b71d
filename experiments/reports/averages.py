"""Means over seeds, and what forbids taking or comparing them."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports import paper
from experiments.reports.variants import DatasetRuns
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
    protocols: section -> the fields that all its values share, but for the seed, as written.
    warnings: section -> what is odd about its values.
    """

    table: pd.DataFrame
    protocols: dict[str, dict[str, str]]
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


def beyond_a_guess(quantity: str, mean: float | None, protocol: Mapping[str, Any]) -> list[str]:
    """A note on bits/dim above those of a model that holds all levels to be alike."""
    guess = math.log2(protocol.get("num_levels", 256))
    if "bits_per_dim" not in quantity or mean is None or mean <= guess:
        return []
    return [f"above the {guess:.4g} bits/dim of a uniform guess, so that it says little"]


# --- What is odd about a section ---


def long_table(part: DatasetRuns) -> pd.DataFrame:
    """One line for every measured value, with the run that it is of and that run's code (ten digits
    of its commit, with the mark of uncommitted changes).

    A quantity goes by its name without the extractor's, which the protocol holds.
    """
    lines = [
        {
            "section": name,
            "row": variant.label,
            "place": run.place,
            "run": run,
            "protocol": section.protocol,
            "commit": re.sub(r"(?<=^.{10})[^-]*", "", str(origin.get("commit", "unknown"))),
            "step": str(section.protocol.get("checkpoint_step")),
            "quantity": quantity.replace(f"_{section.protocol.get('extractor')}", ""),
            "value": float(number["value"]),
        }
        for variant in part.variants
        for run in variant.runs
        for name, section in run.sections.items()
        for origin in [section.provenance]
        for quantity, number in section.values.items()
    ]
    return pd.DataFrame(lines)


def _odd_protocols(runs: pd.DataFrame) -> dict[str, str]:
    """Variants whose first run's protocol is not that of most, with the fields that differ."""
    first = runs.drop_duplicates("row")
    unlike = pd.DataFrame(differences(list(first["protocol"])), index=first["row"]).map(written)
    usual = [Counter(unlike[field]).most_common(1)[0][0] for field in unlike]
    return {
        label: "; ".join(
            f"{field} = {value}, in most rows {other}"
            for (field, value), other in zip(fields.items(), usual, strict=True)
            if value != other
        )
        for label, fields in unlike[(unlike != usual).any(axis=1)].iterrows()
    }


def _odd_commits(runs: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Variants measured by other code than most runs, and what is to be said about all."""
    distinct = list(runs["commit"].unique())
    warnings = [
        f"some numbers come from code with {words}."
        for kind, words in (("-dirty", "uncommitted changes"), ("unknown", "unknown version"))
        if any(kind in commit for commit in distinct)
    ]
    if len(distinct) > 1:
        warnings.append(f"numbers of {len(distinct)} versions of the code: {', '.join(distinct)}.")
    usual = Counter(runs["commit"]).most_common(1)[0][0]
    own = runs.groupby("row", sort=False)["commit"].unique()
    return {
        label: f"code {' and '.join(commits)}, mostly {usual}"
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


# --- All numbers ---


def numbers(part: DatasetRuns) -> Numbers:
    """The means over seeds of everything that the runs have measured."""
    lines: list[tuple[Any, ...]] = []
    protocols, warnings = {}, {}
    measured = long_table(part)
    for name, table in measured.groupby("section", sort=False) if len(measured) else ():
        runs = table.drop_duplicates("place")
        having = runs.groupby("row")["run"].agg(list)
        unshared = {*differences(list(runs["protocol"]), free=()), "seed"}
        shared = {k: v for k, v in runs["protocol"].iloc[0].items() if k not in unshared}
        protocols[name] = {field: written(value) for field, value in shared.items()}
        commits, of_commits = _odd_commits(runs)
        odd = _odd_protocols(runs)
        warnings[name] = [f"{label}: not comparable, {why}." for label, why in odd.items()]
        warnings[name] += [*of_commits, *_unlike_counts(runs)]
        for variant in part.variants:
            label = variant.label
            notes = [f"not comparable: {odd[label]}"] if label in odd else []
            notes += [commits[label]] if label in commits else []
            own = having.get(label, [])
            older = [run.sections[name].older for run in own]
            notes += dict.fromkeys(why for why in older if why)
            unlike = why_not_averaged(own, name)
            if unlike:
                warnings[name].append(f"{label}: not averaged: {unlike}.")
            for quantity, every in table.groupby("quantity", sort=False):
                values = list(every["value"][every["row"] == label])
                found = average(values, unlike, len(variant.runs)) if values else Value("")
                printed = paper.published_beside((own or variant.runs)[0], name, quantity)
                lines.append(
                    (
                        *(part.dataset, label, name, quantity, found.mean, found.deviation),
                        *(len(values), len(variant.runs), found.text),
                        *printed,
                        (*found.notes, *notes, *beyond_a_guess(quantity, found.mean, shared))
                        if values
                        else (),
                    )
                )
    return Numbers(pd.DataFrame(lines, columns=list(COLUMNS), dtype=object), protocols, warnings)
