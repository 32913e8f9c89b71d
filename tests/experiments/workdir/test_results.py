"""What counts as a measured section of results.json."""

import json
import pathlib
from typing import Any

import pytest

from experiments.workdir.results import measured, read_results

GOOD: dict[str, Any] = {
    "values": {"bits_per_dim": {"value": 4.5, "standard_error": 0.1}},
    "protocol": {"split": "test"},
    "provenance": {"commit": "abc"},
}


def test_sections_with_values_are_measured_and_no_others(tmp_path: pathlib.Path) -> None:
    assert measured(read_results(tmp_path)) == ({}, [])
    content = {"train": {"state": "finished", "step": 3}, "bpd": GOOD, "sample": {"files": []}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    found, problems = measured(read_results(tmp_path))
    assert list(found) == ["bpd"] and problems == []
    assert found["bpd"]._asdict() == GOOD | {"trained_to": 3}


def test_an_older_protocol_is_renewed_as_it_is_read() -> None:
    old = GOOD | {"protocol": {"sampler": "ancestral"}}
    protocol = measured({"samples": old})[0]["samples"].protocol
    assert protocol["sampler"] == {"name": "ancestral"} and protocol["spacing"] == {
        "name": "uniform"
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": [1]}, "no object with fields"),
        ({"protocol": 3}, "no object with fields"),
        ({"protocol": {}}, "its protocol cannot be read"),
        ({"values": {"x": 1}}, "x cannot be read"),
        ({"values": {"x": {"value": "1"}, "y": {}}}, "x, y cannot be read"),
    ],
)
def test_what_is_damaged_is_named_and_left_out(change: dict[str, Any], words: str) -> None:
    found, (problem,) = measured({"bpd": GOOD | change, "bpd_fast": GOOD})
    assert list(found) == ["bpd_fast"]
    assert problem.startswith("section bpd: ") and words in problem
    kept, problems = measured({"bpd": GOOD | {"values": GOOD["values"] | {"x": 1}}})
    assert list(kept["bpd"].values) == ["bits_per_dim"] and "x" in problems[0]
