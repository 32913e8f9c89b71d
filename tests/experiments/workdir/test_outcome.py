"""When a training counts as diverged, and what is recorded of it."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import console, devices, hooks, train
from experiments.build import build
from experiments.state import SavedState, TrainState, init_state, load_ema, save
from experiments.workdir import outcome, training_log
from experiments.workdir.checkpoint import CheckpointError, Checkpoints
from experiments.workdir.metrics_file import read_records
from experiments.workdir.outcome import EXIT_STATUS, Outcome, Watch
from experiments.workdir.results import read_results

Make = Callable[[], ConfigDict]


def watch(above: float = 0.0, steps: int = 0) -> Watch:
    return Watch(ConfigDict(dict(diverged_above=above, diverged_for=steps)))


def steps_of(watch: Watch, losses: list[float]) -> list[int]:
    """The steps, 10 apart, at which the watch says that the training has diverged."""
    looks = [
        (10 * i, watch.check_window(10 * i, {"loss": loss})) for i, loss in enumerate(losses, 1)
    ]
    return [step for step, found in looks if found is not None]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_it_at_once(loss: float) -> None:
    eye = watch()
    assert eye.check_window(10, {"loss": 0.5, "grad_norm": 2.0}) is None
    found = eye.check_window(20, {"loss": loss, "grad_norm": 3.0})
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
        assert eye.check_window(step, {"loss": loss}) is None
    found = eye.check_window(30, {"loss": 6.0})
    assert found is not None and found.metrics == {"step": 10, "loss": 0.7}
    assert "diverged_above" in found.reason and "10 steps" in found.reason


def test_what_was_seen_before_an_interruption_is_reported(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "metrics.jsonl"
    eye = watch(1.0, 0)
    eye.remember(log)  # a new training
    found = eye.check_window(10, {"loss": math.nan})
    assert found is not None and found.metrics == {}
    records = [
        *({"step": 10, "loss": 0.9}, {"step": 20, "loss": 0.7}, {"step": 30, "loss": 5.0}),
        *({"step": 30, "validation_bpd_fast": 4.0}, {"step": 40, "loss": math.nan}),
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    eye.remember(log)
    found = eye.check_window(50, {"loss": math.inf})
    assert found is not None and found.metrics == records[1]


def test_a_training_that_diverges_stops_and_is_recorded(
    plain: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = plain()
    config.optimizer.learning_rate = 1e38
    config.train.num_steps, config.train.log_every = 40, 2
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    section = read_results(tmp_path)["train"]
    assert section["state"] == "diverged" and "loss is" in section["reason"]
    lines, _ = read_records(tmp_path / "metrics.jsonl")
    finite = [line for line in lines if math.isfinite(line["loss"])]
    assert section["metrics"] == finite[-1]
    assert section["step"] == lines[-1]["step"] == finite[-1]["step"] + 2 < 40
    assert not math.isfinite(lines[-1]["loss"])
    for path in (tmp_path / "metrics.jsonl", tmp_path / "results.json"):
        assert not {"NaN,", "Infinity,"} & set(path.read_text().split())  # which is no JSON
    assert "DIVERGED" in capsys.readouterr().out
    assert (
        hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    )  # it would not get better


def test_a_divergence_in_the_last_window_is_not_forgotten(
    plain: Make, tmp_path: pathlib.Path
) -> None:
    config = plain()
    config.optimizer.learning_rate = 1e38
    config.train.log_every = config.train.num_steps
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED


class Fields(NamedTuple):
    params: Any
    opt_state: Any
    step: Any


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_spoils_its_field(bad: float) -> None:
    """Whole numbers are always finite, and so is nothing at all."""
    good = {"w": jnp.ones((3, 2)), "b": jnp.zeros(4, jnp.bfloat16), "n": jnp.int32(3)}
    spoilt = good | {"b": good["b"].at[2].set(bad)}
    for params in (good, spoilt):
        state = Fields(params, opt_state=(), step=jnp.int32(7))
        found = jax.jit(outcome.finite_fields)(state)
        assert {name: bool(value) for name, value in found.items()} == {
            "params": params is good,
            "opt_state": True,
            "step": True,
        }
        divergence = watch().check_state(30, found)
        assert (divergence is None) == (params is good)
    assert divergence is not None and divergence.step == 30 and "params" in divergence.reason
    assert "opt_state" not in divergence.reason


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, what: str) -> None:
    """From step `at` on the loss is NaN, or the state is and no loss says so."""
    make = train.make_train_step

    def spoilt(experiment: Any, mesh: Any) -> Any:
        step_fn = make(experiment, mesh)

        def step(state: TrainState, batch: Any) -> Any:
            bad = jnp.where(state.step >= at, jnp.nan, 0.0)
            state, metrics = step_fn(state, batch)
            if what == "loss":
                return state, metrics | {"loss": metrics["loss"] + bad}
            field = jax.tree.map(lambda x: x + bad.astype(x.dtype), getattr(state, what))
            return state._replace(**{what: field}), metrics

        return step

    monkeypatch.setattr(train, "make_train_step", spoilt)


def numbers(workdir: pathlib.Path, config: ConfigDict) -> dict[int, Any]:
    """Every checkpoint's state and EMA."""
    experiment = build(config)
    everywhere = devices.replicated(devices.make_mesh())
    abstract = devices.abstract_like(lambda: init_state(experiment), everywhere)
    with Checkpoints(workdir) as checkpoints:
        return {
            step: (
                TrainState(
                    *checkpoints.restore(
                        step, "state", SavedState(*abstract._replace(ema_params=()))
                    )
                ),
                checkpoints.restore(step, "ema", abstract.ema_params),
            )
            for step in checkpoints.steps()
        }


def files(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize(
    ("what", "at", "log_every", "checkpoint_every"),
    [
        ("loss", 9, 4, 4),  # saved where it is seen
        ("loss", 9, 4, 6),  # saved between two records
        ("loss", 8, 6, 4),  # just after a checkpoint
        ("loss", 9, 14, 4),  # saved several times in one record
        ("loss", 13, 4, 14),  # in the last steps
        ("params", 9, 14, 10),  # the last update before a save, which no loss tells of
        ("ema_params", 5, 4, 6),  # on which no loss depends at all
    ],
)
def test_what_diverged_is_never_saved(
    plain: Make,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    what: str,
    at: int,
    log_every: int,
    checkpoint_every: int,
) -> None:
    """Step `at`, counted from 0, is the first bad one: a checkpoint of step `at` is still good."""
    config = plain()
    config.train.num_steps, config.train.keep_checkpoints = 14, 9
    config.train.log_every, config.train.checkpoint_every = log_every, checkpoint_every
    spoil(monkeypatch, at, what)
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    found = numbers(tmp_path, config)
    assert sorted(found) == list(range(checkpoint_every, at + 1, checkpoint_every))
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    section = read_results(tmp_path)["train"]
    assert section["state"] == "diverged" and at < section["step"] <= at + max(
        log_every, checkpoint_every
    )
    assert math.isfinite(section["metrics"].get("loss", 0.0))

    before = files(tmp_path)
    capsys.readouterr()
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    assert files(tmp_path) == before
    said = " ".join(capsys.readouterr().out.split())
    assert f"step {section['step']}" in said and section["reason"] in said
    assert f"of step {max(found)}" in said if found else "none at all" in said
    assert ("go on from that checkpoint" in said) == bool(found) and "--continue_diverged" in said
    assert "another --workdir" in said and said.count("DIVERGED") == 1


def test_nothing_is_saved_while_a_loss_is_above_its_bound(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite, but for too long: what was saved before stays the newest."""
    config = plain()
    config.train.num_steps, config.train.keep_checkpoints = 40, 2
    config.train.log_every = config.train.checkpoint_every = 4
    config.train.diverged_above, config.train.diverged_for = 50.0, 12
    read = training_log.Window.read

    def rising(window: training_log.Window, num_steps: int, seconds: float) -> dict[str, float]:
        return read(window, num_steps, seconds) | ({"loss": 1e6} if window.step > 12 else {})

    monkeypatch.setattr(training_log.Window, "read", rising)
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    section = read_results(tmp_path)["train"]
    assert section["step"] == 28 and section["metrics"]["step"] == 12
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [8, 12]
    assert outcome.diverged_before(tmp_path) == section
    assert "of step 12" in outcome.why_not_on(tmp_path, section)


def test_a_checkpoint_of_numbers_that_are_not_finite_is_refused(
    plain: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """As older versions saved them; the one before is used, and that is said."""
    config = plain()
    config.train.num_steps = 8
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    with Checkpoints(tmp_path) as checkpoints:
        meta = checkpoints.meta(8)
        state, ema = numbers(tmp_path, config)[8]
        broken = jax.tree.map(lambda x: x.at[...].set(jnp.nan), ema)
        save(checkpoints, 12, state._replace(ema_params=broken), meta)
    with pytest.raises(CheckpointError, match=r"(?s)/12 was saved with .*not finite.*\[8\]"):
        load_ema(build(config), tmp_path, devices.make_mesh(), "latest")
    assert load_ema(build(config), tmp_path, devices.make_mesh()).step == 8
    assert "using step 8" in capsys.readouterr().out


def test_a_signal_saves_nothing_that_diverged(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain()
    config.train.log_every = config.train.checkpoint_every = 8
    spoil(monkeypatch, 4, "params")
    monkeypatch.setattr(console, "stop_requested", lambda heed: contextlib.nullcontext([1.0]))
    monkeypatch.setattr(Checkpoints, "reached_preemption", lambda self, step: False)
    assert hooks.train_with_hooks(build(config), tmp_path / "at once") is Outcome.STOPPED
    assert sorted(numbers(tmp_path / "at once", config)) == [2]
    for _ in range(2):  # each start does one call
        ended = hooks.train_with_hooks(build(config), tmp_path / "at once")
    assert ended is Outcome.DIVERGED
    assert sorted(numbers(tmp_path / "at once", config)) == [2, 4]


def test_the_best_is_never_one_that_diverged(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the validation says of it."""
    config = plain()
    config.train.validate_every, config.train.validate_with = 2, "samples"
    spoil(monkeypatch, 4, "ema_params")
    values = iter([3.0, 2.0, 1.0, 0.0])
    fixed = {"samples": lambda *arguments: lambda params: next(values)}
    monkeypatch.setattr(hooks, "VALIDATIONS", fixed)
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    assert list(numbers(tmp_path / "best", config)) == [4]


def test_a_finished_training_says_where_it_ended(
    plain_run: tuple[ConfigDict, pathlib.Path],
) -> None:
    config, workdir = plain_run
    section = read_results(workdir)["train"]
    assert section["state"] == "finished" and section["step"] == config.train.num_steps
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert section["metrics"] == json.loads(lines[-1])
    assert outcome.diverged_before(workdir) is None


def test_every_end_has_an_exit_status_of_its_own() -> None:
    assert EXIT_STATUS.keys() == set(Outcome)
    assert len(set(EXIT_STATUS.values())) == len(Outcome)
