"""Laws of which checkpoint is used, and of going on after a divergence."""

import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, hooks
from experiments.build import build
from experiments.state import Start, load_ema
from experiments.workdir.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments.workdir.test_outcome import numbers, spoil

Make = Callable[..., ConfigDict]


@pytest.fixture(scope="module")
def finished(plain: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A training of 12 steps with checkpoints 4, 8 and 12."""
    config = plain()
    config.train.num_steps, config.train.keep_checkpoints = 12, 9
    workdir = tmp_path_factory.mktemp("restore") / "run"
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    return config, workdir


def copy(finished: tuple, tmp_path: pathlib.Path) -> tuple[ConfigDict, pathlib.Path]:
    return ConfigDict(finished[0].to_dict()), shutil.copytree(finished[1], tmp_path / "run")


def damage(workdir: pathlib.Path, step: int, item: str, how: str = "flip") -> None:
    """Every file of an item: orbax has most numbers twice, and a damaged copy is no damage."""
    folder = workdir / "checkpoints" / str(step) / item
    if how == "remove":
        shutil.rmtree(folder)
        return
    for path in files(folder):
        content = bytearray(path.read_bytes())
        half = len(content) // 2
        content[half : half + 1] = bytes(byte ^ 1 for byte in content[half : half + 1])
        path.write_bytes({"flip": content, "cut": content[:half], "empty": b""}[how])


@pytest.mark.parametrize(
    ("item", "how"),
    [("state", "flip"), ("state", "cut"), ("ema", "empty"), ("meta", "cut"), ("ema", "remove"),
     ("meta", "remove")],
)  # fmt: skip
def test_a_training_goes_on_from_the_newest_sound_step_and_says_so(
    finished: tuple,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    item: str,
    how: str,
) -> None:
    """It ends in the very parameters that it had; the damaged step is kept apart."""
    config, workdir = copy(finished, tmp_path)
    damage(workdir, 12, item, how)
    broken = workdir / "checkpoints" / "12"
    before = {path.relative_to(broken): path.read_bytes() for path in files(broken)}
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING checkpoint" in said and f"{workdir / 'checkpoints' / '12'}" in said
    assert "using step 8, the newest that is sound" in said and "resuming step 8" in said
    aside = workdir / "set_aside" / "12"
    assert before == {path.relative_to(aside): path.read_bytes() for path in files(aside)}
    jax.tree.map(
        np.testing.assert_array_equal,
        numbers(workdir, config)[12],
        numbers(finished[1], config)[12],
    )


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_where_all_are_damaged_nothing_is_begun_anew(
    finished: tuple, tmp_path: pathlib.Path
) -> None:
    config, workdir = copy(finished, tmp_path)
    for step in (4, 8, 12):
        damage(workdir, step, "state")
    before = {path: path.read_bytes() for path in files(workdir)}
    with pytest.raises(DamagedCheckpoint, match="/12 (cannot be read|is damaged)"):
        hooks.train_with_hooks(build(config), workdir)
    assert before == {path: path.read_bytes() for path in files(workdir)}


def test_a_step_that_was_asked_for_is_used_or_refused(
    finished: tuple, tmp_path: pathlib.Path
) -> None:
    config, workdir = copy(finished, tmp_path)
    experiment, mesh = build(config), devices.make_mesh()
    assert [load_ema(experiment, workdir, mesh, step).step for step in (4, "latest", "auto")] == [
        *(4, 12, 12)
    ]
    with pytest.raises(CheckpointError, match=r"no step 5: it has \[4, 8, 12\]"):
        load_ema(experiment, workdir, mesh, 5)
    damage(workdir, 12, "ema")
    assert load_ema(experiment, workdir, mesh).step == 8
    for step in ("latest", 12):
        with pytest.raises(DamagedCheckpoint, match=r"Older steps exist.*--restore_step=8"):
            load_ema(experiment, workdir, mesh, step)
    config.checkpoint = "best"
    with pytest.raises(ValueError, match="--restore_step=4 is one of the newest"):
        load_ema(build(config), workdir, mesh, 4)


def test_a_step_that_is_not_there_begins_no_training(
    plain: Callable[[], ConfigDict], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(CheckpointError, match=r"has no step 77: it has none .*--restore_step"):
        hooks.train_with_hooks(build(plain()), tmp_path, Start(77))
    for name in ("config.json", "metrics.jsonl", "checkpoints"):
        assert not (tmp_path / name).exists(), name


def test_a_training_that_goes_back_keeps_what_it_leaves(
    finished: tuple, tmp_path: pathlib.Path
) -> None:
    """And does so a second time."""
    config, workdir = copy(finished, tmp_path)
    for _ in range(2):
        ended = hooks.train_with_hooks(build(config), workdir, Start(4))
        assert ended is Outcome.FINISHED
    kept = sorted(path.name for path in (workdir / "set_aside").iterdir())
    assert kept == ["12", "12.1", "8", "8.1"]
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [4, 8, 12]
    jax.tree.map(
        np.testing.assert_array_equal,
        numbers(workdir, config)[12],
        numbers(finished[1], config)[12],
    )


def test_another_model_is_no_damage(finished: tuple, tmp_path: pathlib.Path) -> None:
    """And no older step is tried in its place."""
    config, workdir = copy(finished, tmp_path)
    config.optimizer.learning_rate *= 2
    with pytest.raises(ValueError, match="learning_rate"):
        hooks.train_with_hooks(build(config), workdir)
    assert not (workdir / "set_aside").exists()


@pytest.mark.parametrize("at", [3, 9])  # before anything was saved, and after two saves
def test_a_diverged_training_goes_on_with_other_settings_on_record(
    plain: Make,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    at: int,
) -> None:
    config = plain()
    config.train.num_steps, config.train.keep_checkpoints = 14, 9
    config.train.log_every = config.train.checkpoint_every = 4
    with monkeypatch.context() as patch:
        spoil(patch, at, "loss")
        assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    rate = config.optimizer.learning_rate
    config.optimizer.learning_rate = rate / 2
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED  # not without asking
    assert "--continue_diverged" in capsys.readouterr().out
    config.train.num_steps = 12
    assert hooks.train_with_hooks(build(config), tmp_path, Start(diverged=True)) is Outcome.FINISHED
    config.train.num_steps = 14  # and on, without asking again
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    section = read_results(tmp_path)["train"]
    assert section["state"] == "finished" and section["step"] == 14
    if at == 3:
        assert "before anything was saved: anew" in capsys.readouterr().out
        assert "continued" not in section
        return
    [past] = section["continued"]
    assert past["step"] == 8 and past["diverged_at"] == 12 and "loss is" in past["reason"]
    assert past["changed"] == {"optimizer.learning_rate": [rate, rate / 2]}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.meta(14)["continued"] == [past]
        assert "continued" not in checkpoints.meta(8)


def test_after_a_divergence_the_model_must_be_the_same(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain()
    config.train.log_every = config.train.checkpoint_every = 4
    with monkeypatch.context() as patch:
        spoil(patch, 5, "loss")
        assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.DIVERGED
    config.model.channels *= 2
    with pytest.raises(ValueError, match=r"model.channels"):
        hooks.train_with_hooks(build(config), tmp_path, Start(diverged=True))
    assert read_results(tmp_path)["train"]["state"] == "diverged"
