"""What the log of a training says of itself."""

import pathlib
import time
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import console
from experiments.workdir.training_log import TrainingLog, Window


def test_a_folder_that_stalls_is_named(
    tiny: Callable[[], ConfigDict],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console.told_when_slow
    monkeypatch.setattr(console, "told_when_slow", lambda what: told(what, seconds=0.1))
    with TrainingLog(tmp_path, 0, tiny(), 100) as log:
        log.show(1, {"loss": 1.0})
        assert "waiting" not in capsys.readouterr().out
        scalars = log._sinks.scalars
        monkeypatch.setattr(log._sinks, "scalars", lambda *a: (time.sleep(0.3), scalars(*a)))
        log.show(2, {"loss": 1.0})
    said = " ".join(capsys.readouterr().out.split())
    assert f"for the log to be written to {tmp_path}" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_mean_of_no_examples_is_a_dash_and_no_column() -> None:
    """As of a quarter of the chain in which no t was drawn; nan would look like a divergence."""
    sums, counts = np.array([3.0, 0.0]), np.array([2.0, 0.0])
    calls = [{"summary": {"loss_q": (sums, counts), "share": (0.0, 0.0)}}] * 2
    window = Window(1, calls, 1, 0.0, {})
    assert window.columns({"loss_q0": 1.5}) == " [1.500 -]  share -"
