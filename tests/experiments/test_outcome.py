"""When a training counts as diverged, and what is recorded of it."""

import json
import math
import pathlib
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from experiments import outcome, runs, train
from experiments.build import build
from experiments.outcome import EXIT_STATUS, Outcome, Watch

Make = Callable[[], ConfigDict]


def watch(above: float = 0.0, steps: int = 0) -> Watch:
    return Watch(ConfigDict(dict(diverged_above=above, diverged_for=steps)))


def steps_of(watch: Watch, losses: list[float]) -> list[int]:
    """The steps, 10 apart, at which the watch says that the training has diverged."""
    looks = [(10 * i, watch.look(10 * i, {"loss": loss})) for i, loss in enumerate(losses, 1)]
    return [step for step, found in looks if found is not None]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_it_at_once(loss: float) -> None:
    eye = watch()
    assert eye.look(10, {"loss": 0.5, "grad_norm": 2.0}) is None
    found = eye.look(20, {"loss": loss, "grad_norm": 3.0})
    assert found is not None and found.step == 20 and str(loss) in found.reason
    assert found.metrics == {"step": 10, "loss": 0.5, "grad_norm": 2.0}


def test_a_high_loss_ends_it_when_it_stays_high() -> None:
    high = [2.0] * 4
    assert steps_of(watch(1.0, 0), high) == [10, 20, 30, 40]
    assert steps_of(watch(1.0, 20), high) == [30, 40]
    assert steps_of(watch(1.0, 40), high) == []
    assert steps_of(watch(0.0, 0), high) == []  # no bound
    assert steps_of(watch(2.0, 0), high) == []  # the bound itself is allowed
    assert steps_of(watch(1.0, 20), [2.0, 2.0, 0.5, 2.0, 2.0, 2.0]) == [60]  # it began anew


def test_what_is_reported_is_the_last_allowed_window() -> None:
    eye = watch(1.0, 10)
    for step, loss in ((10, 0.7), (20, 5.0)):
        assert eye.look(step, {"loss": loss}) is None
    found = eye.look(30, {"loss": 6.0})
    assert found is not None and found.metrics == {"step": 10, "loss": 0.7}
    assert "diverged_above" in found.reason and "10 steps" in found.reason


def test_what_was_seen_before_an_interruption_is_reported(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "metrics.jsonl"
    eye = watch(1.0, 0)
    eye.remember(log)  # a new training
    found = eye.look(10, {"loss": math.nan})
    assert found is not None and found.metrics == {}
    records = [
        *({"step": 10, "loss": 0.9}, {"step": 20, "loss": 0.7}, {"step": 30, "loss": 5.0}),
        *({"step": 30, "validation_bpd_fast": 4.0}, {"step": 40, "loss": math.nan}),
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    eye.remember(log)
    found = eye.look(50, {"loss": math.inf})
    assert found is not None and found.metrics == records[1]


def test_a_training_that_diverges_stops_and_is_recorded(
    tiny: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny()
    config.optimizer.learning_rate = 1e38
    config.train.num_steps, config.train.log_every = 40, 2
    assert train.train(build(config), tmp_path) is Outcome.DIVERGED
    section = runs.read_results(tmp_path)["train"]
    assert section["state"] == "diverged" and "loss is" in section["reason"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    finite = [line for line in lines if math.isfinite(line["loss"])]
    assert section["metrics"] == finite[-1]
    assert section["step"] == lines[-1]["step"] == finite[-1]["step"] + 2 < 40
    assert "DIVERGED" in capsys.readouterr().out
    assert train.train(build(config), tmp_path) is Outcome.DIVERGED  # it would not get better


def test_a_divergence_in_the_last_window_is_not_forgotten(
    tiny: Make, tmp_path: pathlib.Path
) -> None:
    config = tiny()
    config.optimizer.learning_rate = 1e38
    config.train.log_every = config.train.num_steps
    assert train.train(build(config), tmp_path) is Outcome.DIVERGED
    assert train.train(build(config), tmp_path) is Outcome.DIVERGED


def test_a_finished_training_says_where_it_ended(trained: tuple[ConfigDict, pathlib.Path]) -> None:
    config, workdir = trained
    section = runs.read_results(workdir)["train"]
    assert section["state"] == "finished" and section["step"] == config.train.num_steps
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert section["metrics"] == json.loads(lines[-1])
    assert outcome.recorded(workdir) is Outcome.FINISHED


def test_every_end_has_an_exit_status_of_its_own() -> None:
    assert EXIT_STATUS.keys() == set(Outcome)
    assert len(set(EXIT_STATUS.values())) == len(Outcome)
