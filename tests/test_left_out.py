"""Slow tests are left out of a run, and it says how many, unless they were chosen."""

import os
import pathlib
import sys

import pytest

from tests import started

pytest_plugins = ["pytester"]

FILES = {
    "pytest.ini": "[pytest]\nmarkers =\n    slow\n    parity\n",
    "conftest.py": "from tests.conftest import pytest_collection_modifyitems\n"
    "from tests.conftest import pytest_terminal_summary, pytest_testnodedown\n",
    "test_mixed.py": "import pytest\ndef test_quick(): pass\n@pytest.mark.slow\n"
    "def test_long(): pass\n@pytest.mark.parity\ndef test_library(): pass\n",
    "below/test_whole.py": "import pytest\npytestmark = pytest.mark.slow\n"
    "@pytest.mark.parametrize('i', range(3))\ndef test_each(i): pass\n",
}
ALL = "left out: 5 tests marked slow or parity; python -m pytest -m 'slow or parity' runs them"
SLOW = "left out: {} tests marked slow; python -m pytest -m slow runs them"


@pytest.fixture
def folder(pytester: pytest.Pytester) -> pathlib.Path:
    for name, text in FILES.items():
        (pytester.path / name).parent.mkdir(exist_ok=True)
        (pytester.path / name).write_text(text)
    return pytester.path


@pytest.mark.parametrize(
    ("arguments", "passed", "lines"),
    [
        ((), 1, [ALL]),
        ((".",), 1, [ALL]),
        (("test_mixed.py",), 3, []),
        (("test_mixed.py::test_long",), 1, []),
        (("below/test_whole.py::test_each[1]",), 1, []),
        (("test_mixed.py", "below"), 3, [SLOW.format(3)]),
        (("below",), 0, [SLOW.format(3)]),
        (("-k", "long or quick or 2"), 1, [SLOW.format(2)]),
        (("-m", "slow"), 4, []),
        (("-m", "slow or parity"), 5, []),
        (("-m", "not slow"), 2, []),
    ],
)
def test_a_slow_test_runs_where_it_was_chosen(
    folder: pathlib.Path, pytester: pytest.Pytester, arguments: tuple, passed: int, lines: list
) -> None:
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)
    result.assert_outcomes(passed=passed)
    assert [line for line in result.outlines if "left out" in line] == lines


@pytest.mark.slow
def test_workers_say_it_once(folder: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    environ = os.environ | {"PYTHONPATH": str(started.ROOT)}
    lines = started.run(command, cwd=folder, env=environ).stdout.splitlines()
    assert [line for line in lines if "left out" in line] == [ALL]
    assert lines[-2] == ALL and "1 passed" in lines[-1]
