"""What a run shows is read back from what its sinks wrote."""

import json
import pathlib
import sys
import time

import jax
import numpy as np
import pytest

from experiments import devices, evaluate, hooks
from experiments.build import build
from experiments.state import load_ema, load_raw
from experiments.workdir.outcome import Outcome
from experiments.workdir.sinks import SINKS, open_sinks, show
from tests.experiments.modes import sample
from tests.started import run


def events(workdir: pathlib.Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0})
    return found.Reload()


def test_a_run_shows_its_training_its_pictures_and_what_was_measured(tiny, tmp_path) -> None:
    config = tiny()
    config.train.preview_every, config.train.preview_images = 8, 4
    config.evaluate.metrics, config.evaluate.num_images = "bpd", 6
    experiment = build(config)
    assert hooks.train_with_hooks(experiment, tmp_path) is Outcome.FINISHED
    results = sample(experiment, tmp_path)
    loaded = load_ema(experiment, tmp_path, devices.make_mesh())
    measured = evaluate.evaluate(experiment, tmp_path, loaded)["bpd"]
    shown = events(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "learning_rate", "param_norm", "update_norm", "ema_distance", "epoch"):
        values = {event.step: event.value for event in shown.Scalars(f"train/{name}")}
        assert values == pytest.approx({line["step"]: line[name] for line in lines}), name
    (bound,) = shown.Scalars("eval/bpd/bits_per_dim")
    assert bound.step == 8 and bound.value == pytest.approx(measured["bits_per_dim"]["value"])
    assert {"eval/preview", "eval/samples"} <= set(shown.Tags()["images"])
    assert b"num_timesteps: 8" in shown.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert results["num_images"] == config.sample.num_images


def test_what_is_shown_within_a_second_is_all_kept(plain, tmp_path) -> None:
    """tensorboardX names its files by the second, and begins them anew."""
    config = plain()
    config.train.log_to = "tensorboard"
    for step in range(20):
        show(tmp_path, config, step, {"eval/bound": float(step)})
    shown = events(tmp_path).Scalars("eval/bound")
    assert [(event.step, event.value) for event in shown] == [(n, n) for n in range(20)]


def test_the_logged_numbers_are_what_they_say(plain, tmp_path) -> None:
    """The rate is the schedule's, the epoch counts images, norms are of the saved state."""
    config = plain()
    config.train.log_to, config.train.log_every = "", 4
    experiment = build(config)
    hooks.train_with_hooks(experiment, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warm = config.optimizer.warmup_steps
    for line in lines:
        part = min((line["step"] - 1) / warm, 1.0)
        assert line["learning_rate"] == pytest.approx(config.optimizer.learning_rate * part)
        assert line["epoch"] == pytest.approx(line["step"] * 16 / 1497)
    mesh = devices.make_mesh()
    average = load_ema(experiment, tmp_path, mesh).params
    raw = load_raw(experiment, tmp_path, 8, mesh)

    def norm(tree) -> float:
        return float(
            np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree)))
        )

    assert lines[-1]["param_norm"] == pytest.approx(norm(raw), rel=1e-5)
    apart = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), average, raw)
    assert lines[-1]["ema_distance"] == pytest.approx(norm(apart), rel=1e-4)


def test_weights_and_biases_keeps_a_run_offline(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sinks = open_sinks(tmp_path, "wandb")
    sinks.text("config", "seed: 0")
    sinks.scalars(3, {"train/loss": 0.5})
    sinks.image(3, "eval/preview", np.zeros((4, 4, 1), np.uint8))
    sinks.close()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 30  # a process of its own writes it
    while b"train/loss" not in written.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_without_its_package_a_sink_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[wandb\]'"):
        open_sinks(tmp_path, "wandb")
    assert set(SINKS) == {"tensorboard", "wandb"}


@pytest.mark.parametrize("early", [False, True])
def test_files_that_cannot_be_written_hang_nothing(tmp_path: pathlib.Path, early: bool) -> None:
    """The thread that writes would end, and the queue before it stay full for ever."""
    program = f"""
import pathlib, time, tensorboardX
from experiments.workdir.sinks import TensorBoard
def gone(self): raise OSError(30, "Read-only file system")
if {early}: tensorboardX.event_file_writer.EventsWriter.flush = gone
board = TensorBoard(pathlib.Path({str(tmp_path)!r}), None)
tensorboardX.event_file_writer.EventsWriter.flush = gone
try:
    for step in range(20_000):
        board._thread._next_flush_time = 0
        board.scalars(step, {{"loss": 0.0, "norm": 1.0}})
        time.sleep(0.001)
except OSError as error: print("met", error.errno, step < 19_999)
try: board.close()
except OSError as error: print("and", error.errno)
"""
    done = run([sys.executable, "-c", program], timeout=60)
    numbers = (5, 30) if early else (30,)  # 5 where the thread had ended before it was watched
    assert done.stdout in {f"met {n} True\nand {n}\n" for n in numbers}, done.stderr
    assert early or "Traceback" not in done.stderr, done.stderr


def test_a_full_disk_is_met_once_and_not_again_at_the_end(tmp_path: pathlib.Path) -> None:
    """tensorboardX closes its files once more when the program ends, with a traceback."""
    program = f"""
import pathlib, tensorboardX
from experiments.workdir.sinks import TensorBoard
board = TensorBoard(pathlib.Path({str(tmp_path)!r}), None)
def full(self): raise OSError(28, "No space left on device")
tensorboardX.event_file_writer.EventsWriter.flush = full
try: board.close()
except OSError as error: print("met", error.errno)
"""
    done = run([sys.executable, "-c", program])
    assert done.stdout == "met 28\n" and "Traceback" not in done.stderr, done.stderr
