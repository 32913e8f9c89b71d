"""What is read of metrics.jsonl, whole, cut off and damaged, and what is cut from it."""

import json
import math
import pathlib

import pytest

from experiments.workdir.metrics_file import (
    Progress,
    drop_lines_after,
    progress,
    read_records,
    windows,
)

RECORDS = [
    {"step": 10, "loss": 0.5, "eta_seconds": 9.0},
    {"step": 10, "validation_bpd": 3.0},
    {"step": 20, "loss": 0.25, "eta_seconds": 4.5},
]


def put(path: pathlib.Path, records: list[dict]) -> str:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text)
    return text


def test_what_was_written_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == ([], 0) and progress(tmp_path) == Progress()
    put(path, [*RECORDS, {"step": 30, "loss": math.nan}])
    records, damaged = read_records(path)
    assert records[:3] == RECORDS and damaged == 0
    assert math.isnan(windows(records)[-1]["loss"]) and len(windows(records)) == 3


def test_a_last_line_that_is_cut_off_is_left_out_wherever_it_is_cut(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = put(path, RECORDS)
    whole = text.index("\n", text.index("validation"))
    for cut in range(whole + 1, len(text)):
        path.write_text(text[:cut])
        assert read_records(path) == (RECORDS[:2], 0), cut
        assert progress(tmp_path) == Progress(10, 0.5, 9.0)


@pytest.mark.parametrize(
    "line",
    [
        *("{]", "3", "[]", "null", '{"loss": 1.0}', '{"step": "x", "loss": 1.0}', "\0\0", ""),
        *('{"step": Infinity, "loss": 1.0}', '{"step": "Infinity"}', '{"step": 1e308, "loss": 1}'),
        *(f'{{"step": {10**400}, "loss": 1}}', '{"step": -1, "loss": 1.0}', '{"step": NaN}'),
    ],
)
def test_a_damaged_line_is_counted_and_the_others_are_read(
    tmp_path: pathlib.Path, line: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n{put(path, RECORDS)}{line}\n")
    assert read_records(path) == (RECORDS, 2)
    assert progress(tmp_path) == Progress(20, 0.25, 4.5)
    drop_lines_after(path, 20)
    assert read_records(path) == (RECORDS, 0)


def test_cutting_back_keeps_the_records_up_to_the_step_as_they_were(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_lines_after(path, 0)
    assert not path.exists()
    text = put(path, RECORDS)
    for step, kept in ((25, 3), (20, 3), (19, 2), (10, 2), (9, 0)):
        drop_lines_after(path, step)
        assert path.read_text() == "".join(text.splitlines(keepends=True)[:kept])


def test_the_end_of_a_long_file_is_enough(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "loss": 1 / step, "eta_seconds": 0.0} for step in range(1, 999)]
    put(path, records)
    found, damaged = read_records(path, last_bytes=300)
    assert damaged == 0 and 0 < len(found) < 10 and found == records[-len(found) :]
    assert progress(tmp_path).step == 998
