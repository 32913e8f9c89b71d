"""The list of mutants has not rotted, and the program that runs it tells outcomes apart."""

import os
import pathlib
import signal
import sys
import time

import pytest

from tests.mutants import ROOT, Outcome, Runs, judge, main, mistakes
from tests.mutants_list import MUTANTS, Mutant
from tests.started import started

AREA = "def area(width, height):\n    return width * height\n"
TESTS = """
import os, pathlib
from diffusion.area import area

def test_two_by_three():
    assert area(2, 3) == 6

def test_one_by_one():
    if "PID" in os.environ:
        pathlib.Path(os.environ["PID"]).write_text(str(os.getpid()))
    assert area(1, 1) == 1
"""
STRONG, WEAK = (f"tests/test_area.py::test_{name}" for name in ("two_by_three", "one_by_one"))
ADDED = Mutant("added", "diffusion/area.py", "width * height", "width + height", STRONG)
ENDLESS = "return width * height", "while True:\n        pass"


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tree as small as can be."""
    root = tmp_path / "project"
    for name, text in (
        ("diffusion/__init__.py", ""),
        ("diffusion/area.py", AREA),
        ("tests/test_area.py", TESTS),
        ("tests/test_nothing.py", ""),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_every_mutant_is_of_one_place_and_of_tests_that_are_there() -> None:
    assert [mistake for mutant in MUTANTS for mistake in mistakes(mutant, ROOT)] == []
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert {mutant.file.split("/")[0] for mutant in MUTANTS} == {"diffusion", "experiments"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(file="diffusion/volume.py"), "there is no file diffusion/volume.py"),
        (dict(text="width / height"), "'width / height' occurs 0 times in diffusion/area.py, not"),
        (dict(text="width"), "'width' occurs 2 times"),
        (dict(instead="width *"), "would be no Python"),
        (dict(instead="width  *  height"), "means the same"),
        (dict(tests="tests/test_volume.py"), "there is no test tests/test_volume.py"),
        (dict(tests=f"{STRONG} {STRONG}_by_four"), f"there is no test {STRONG}_by_four"),
        (dict(tests=""), "no test claims it"),
    ],
)
def test_a_record_that_is_no_mutant_is_refused(
    project: pathlib.Path, change: dict, words: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([], project, (ADDED._replace(**change),)) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: these are no mutants (tests/mutants_list.py)")


@pytest.mark.parametrize(
    ("change", "outcome", "by"),
    [
        ({}, Outcome.CAUGHT, "test_area.py::test_two_by_three"),
        (dict(tests="tests/test_area.py"), Outcome.CAUGHT, "test_area.py::test_two_by_three"),
        (dict(instead="width**height", tests=WEAK), Outcome.SURVIVED, "noth"),
        (dict(zip(("text", "instead"), ENDLESS, strict=True)), Outcome.TIMED_OUT, "no end in 3 s"),
        (dict(text="def area", instead="def volume"), Outcome.ERROR, "cannot be loaded"),
        (dict(tests=f"{STRONG}[7]"), Outcome.ERROR, "are not there"),
        (dict(tests="tests/test_nothing.py"), Outcome.ERROR, "no test ran"),
    ],
)
def test_outcomes_are_told_apart(
    project: pathlib.Path, change: dict, outcome: Outcome, by: str
) -> None:
    mutant = ADDED._replace(**change)
    assert mistakes(mutant, project) == []
    endless = outcome is Outcome.TIMED_OUT
    found = judge(mutant, project, Runs(), seconds=3.0 if endless else 100.0)
    assert found.outcome is outcome and by in found.by, found
    assert (project / "diffusion" / "area.py").read_text() == AREA


def test_the_program_says_what_survives(
    project: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    weak = ADDED._replace(name="weak", instead="width**height", tests=WEAK)
    assert main(["--jobs=2"], project, (weak, ADDED)) == 1
    said = capsys.readouterr().out
    assert "pass unbroken" in said and "[2/2]" in said
    assert "| weak | diffusion/area.py | SURVIVED | nothing |" in said
    assert "| added | diffusion/area.py | caught | test_area.py::test_two_by_three |" in said
    assert main(["--only=added", "--unchecked"], project, (weak, ADDED)) == 0
    said = capsys.readouterr().out
    assert "unbroken" not in said and "weak" not in said
    assert main(["--list"], project, (weak, ADDED)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["weak", "added"]
    assert main(["--only=strong"], project, (weak, ADDED)) == 2
    assert "--only=strong names no mutant" in capsys.readouterr().err


def test_tests_that_fail_by_themselves_are_no_judges(
    project: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (project / "diffusion" / "area.py").write_text(AREA.replace("*", "-"))
    assert main([], project, (ADDED._replace(text="width - height"),)) == 2
    said = capsys.readouterr().out
    assert "test_two_by_three" in said and "fail while nothing is broken" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(
    project: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    """No process, no file."""
    endless = Mutant("endless", "diffusion/area.py", *ENDLESS, WEAK)
    temporary, pid = tmp_path / "temporary", tmp_path / "pid"
    temporary.mkdir()
    program = f"""
import pathlib, sys
from tests.mutants import Mutant, main
sys.exit(main(["--unchecked"], pathlib.Path({str(project)!r}), ({endless!r},)))
"""
    environ = os.environ | {"TMPDIR": str(temporary), "PID": str(pid)}
    with started([sys.executable, "-c", program], env=environ) as process:
        until = time.monotonic() + 60
        while not (pid.is_file() and pid.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        assert list(temporary.iterdir())
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert not list(temporary.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
