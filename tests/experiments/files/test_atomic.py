"""JSON files that several programs write."""

import json
import math
import pathlib
import sys

from experiments.files.atomic import number, read_json, strict_json
from tests.started import started


def test_two_writers_of_one_file_do_not_stumble_over_each_other(tmp_path: pathlib.Path) -> None:
    script = (
        "import pathlib, sys; from experiments.files.atomic import write_json\n"
        "for i in range(2000): write_json(pathlib.Path(sys.argv[1]), {'list': [i] * 100})"
    )
    path = tmp_path / "jobs.json"
    command = [sys.executable, "-c", script, str(path)]
    with started(command) as one, started(command) as other:
        assert [writer.wait(timeout=120) for writer in (one, other)] == [0, 0]
    assert read_json(path) == {"list": [1999] * 100}
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_has_not_have_names() -> None:
    """And come back; a strict reader takes them, and nothing else is another for it."""
    content = {"a": [math.nan, 1.5, (math.inf, None)], "b": {"c": -math.inf, "d": "NaN-like"}}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(strict_json(content), parse_constant=refuse)
    assert found == {
        "a": ["NaN", 1.5, ["Infinity", None]],
        "b": {"c": "-Infinity", "d": "NaN-like"},
    }
    back = [number(value) for value in (*found["a"][:2], *found["a"][2], *found["b"].values())]
    assert [repr(value) for value in back] == [*("nan", "1.5", "inf", "None", "-inf", "'NaN-like'")]
    assert [number(10**400), number(-(10**400)), number(10**300)] == [math.inf, -math.inf, 10**300]
    plain = {"x": [1, 2.5, "text", True, None], "y": {"z": 1e300}}
    assert strict_json(plain, indent=2) == json.dumps(plain, indent=2)
