"""Validation during training: the same number as afterwards, and the best checkpoint kept apart."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, hooks, state
from experiments.build import build
from experiments.data.dataset import fingerprint, hold_out
from experiments.features import classifier
from experiments.metrics import bound
from experiments.state import TrainState, load_ema
from experiments.train import train
from experiments.workdir.checkpoint import CheckpointError, Checkpoints
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments import modes
from tests.experiments.meta import edit

Make = Callable[[], ConfigDict]


@pytest.fixture(scope="module")
def config(tiny: Make) -> ConfigDict:
    config = tiny()
    config.train.validate_every = 2
    config.train.validate_images = 10
    return config


@pytest.fixture(scope="module")
def trained(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("validated")
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    return workdir


def small_state(params: Any) -> TrainState:
    return TrainState({"w": np.zeros(2)}, (), params, (), ())


def validations(workdir: pathlib.Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["validation_bpd_fast"] for line in lines if "validation_bpd_fast" in line
    }


def test_every_so_many_steps_there_is_a_number_and_the_best_is_kept(config, trained) -> None:
    values = validations(trained)
    assert sorted(values) == [2, 4, 6, 8] and all(np.isfinite(list(values.values())))
    best = min(values, key=values.__getitem__)
    with Checkpoints(trained / "best") as checkpoints:
        assert checkpoints.latest_step() == best
        assert checkpoints.meta(best)["validation"] == values[best]
    folder = trained / "best" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == [str(best)]
    latest = sorted(int(path.name) for path in (trained / "checkpoints").iterdir())
    assert latest == [4, 8]


def test_the_number_is_the_estimate_of_the_images_held_out(config, trained) -> None:
    """Of images that were never trained on and belong to no split that is reported."""
    other = ConfigDict(config.to_dict())
    other.checkpoint, other.evaluate.metrics = "best", "bpd_fast"
    experiment, mesh = build(other), devices.make_mesh()
    source = experiment.dataset.open("train")
    kept, held = hold_out(source, 10)
    best, values = load_ema(experiment, trained, mesh), validations(trained)
    assert values[best.step] == min(values.values())
    bits = bound.make_estimate(experiment, held, 10, mesh)(best.params)
    assert bits.mean() == pytest.approx(values[best.step], rel=1e-5)
    with Checkpoints(trained) as checkpoints:
        assert checkpoints.meta(8)["fingerprint"] == fingerprint("digits", kept)
    training = state.training_images(experiment)
    assert len(training) == len(kept) == len(source) - 10
    every = [state.held_out(build(config)), len(held)]
    assert every == [10, 10]


def test_every_number_says_what_its_checkpoint_was_chosen_by(config, trained, tmp_path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    said = {}
    for which in ("latest", "best"):
        other = ConfigDict(config.to_dict())
        other.checkpoint, other.evaluate.metrics = which, "bpd_fast"
        modes.evaluate(build(other), run)
        said[which] = read_results(run)["bpd_fast"]["protocol"]["selected_on"]
    assert said == {"latest": "nothing", "best": "bits/dim of 10 images held out of train"}
    other.train.validate_with = "samples"
    chosen = hooks.selected_on(build(other))
    assert chosen == "distance of 10 samples to the train split, 4 steps"
    assert len(state.training_images(build(other))) == 1497


@pytest.mark.parametrize(
    ("fields", "before", "now"),
    [
        (dict(validate_every=0), 10, 0),
        (dict(validate_images=11), 10, 11),
        (dict(validate_with="samples"), 10, 0),
    ],
)
def test_a_run_continues_with_the_images_that_it_held_out(
    config, trained, fields: dict, before: int, now: int
) -> None:
    other = ConfigDict(config.to_dict())
    other.train.num_steps = 10
    other.train.update(fields)
    saved = sorted((trained / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=rf"all but {before} images .* and {now} are held out"):
        train(build(other), trained)
    assert sorted((trained / "checkpoints").iterdir()) == saved


def test_an_older_run_held_nothing_out(config, trained, tmp_path: pathlib.Path) -> None:
    """It goes on without validations, and not with images held out that it was trained on."""
    plain = ConfigDict(config.to_dict())
    plain.train.validate_every, plain.train.num_steps = 0, 4
    assert hooks.train_with_hooks(build(plain), tmp_path) is Outcome.FINISHED
    edit(tmp_path / "checkpoints" / "4", lambda meta: meta.pop("held_out"))
    other = ConfigDict(config.to_dict())
    with pytest.raises(ValueError, match=r"all but 0 images .* and 10 are held out"):
        hooks.train_with_hooks(build(other), tmp_path)
    plain.train.num_steps = 6
    assert hooks.train_with_hooks(build(plain), tmp_path) is Outcome.FINISHED


def test_a_damaged_best_is_set_aside_and_told(config, trained, tmp_path, capsys) -> None:
    best = shutil.copytree(trained / "best", tmp_path / "best")
    (path,) = best.glob("checkpoints/*/meta/metadata")
    path.write_bytes(path.read_bytes()[:-9])
    validate = hooks.Validation(build(config), tmp_path, devices.make_mesh())
    assert validate.step is validate.best is None
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be read (meta)" in said and "set aside" in said
    assert len(list((best / "set_aside").iterdir())) == 1
    validate.close()


def test_a_best_chosen_by_what_is_measured_no_more_is_refused(config, trained, tmp_path) -> None:
    """One of an older version, which looked at the test split."""
    best = shutil.copytree(trained / "best", tmp_path / "best")
    edit(next(best.glob("checkpoints/*")), lambda meta: meta.pop("selected_on"))
    with pytest.raises(ValueError, match=r"first 10 test images, and .*held out of train now"):
        hooks.Validation(build(config), tmp_path, devices.make_mesh())


def test_a_later_and_worse_step_leaves_the_best_alone(config, trained, tmp_path) -> None:
    experiment, mesh = build(config), devices.make_mesh()
    params = load_ema(experiment, trained, mesh).params
    first = hooks.Validation(experiment, tmp_path, mesh)
    value = first(1, small_state(params))["validation_bpd_fast"]
    worse = jax.tree.map(lambda x: x + 3.0, params)
    assert first(2, small_state(worse))["validation_bpd_fast"] > value
    first.close()
    again = hooks.Validation(experiment, tmp_path, mesh)
    assert again.best == value and again.step == 1
    again.close()
    with Checkpoints(tmp_path / "best") as checkpoints:
        assert checkpoints.latest_step() == 1


def test_what_is_no_number_is_never_the_best(config, tmp_path, monkeypatch) -> None:
    """Nothing is smaller than NaN, which would stay the best; and a repeated step is no news."""
    values = iter([float("nan"), 5.0, 4.0, 3.0])
    fixed = {"bpd_fast": lambda experiment, mesh: lambda params: next(values)}
    monkeypatch.setattr(hooks, "VALIDATIONS", fixed)
    validate = hooks.Validation(build(config), tmp_path, devices.make_mesh())
    few = small_state({"w": np.zeros(2)})
    validate(1, few)
    assert validate.best is None
    validate(4, few)
    validate(2, few)
    assert (validate.step, validate.best) == (4, 5.0)
    validate(6, few)
    validate.close()
    with Checkpoints(tmp_path / "best") as checkpoints:
        assert checkpoints.latest_step() == 6 and checkpoints.meta(6)["validation"] == 3.0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.validate_images", 9),
        ("evaluate.num_strata", 2),
        ("ema_decay", 0.5),
        ("seed", 7),
    ],
)
def test_the_best_of_another_run_or_number_is_refused(config, trained, path, value) -> None:
    other = ConfigDict(config.to_dict())
    other.update_from_flattened_dict({path: value})
    with pytest.raises(ValueError, match=rf"best holds a run under .*\n  {path}: .* {value} now"):
        hooks.Validation(build(other), trained, devices.make_mesh())
    other = ConfigDict(config.to_dict())
    other.train.validate_with, other.evaluate.extractor = "samples", "classifier"
    with pytest.raises(ValueError, match=r"validate_with: bpd_fast then, samples now"):
        hooks.Validation(build(other), trained, devices.make_mesh())


def test_samples_can_be_what_is_validated(config, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "RECIPE", classifier.Recipe(channels=(8, 16), steps=20))
    other = ConfigDict(config.to_dict())
    other.train.validate_with = "samples"
    experiment, mesh = build(other), devices.make_mesh()
    validate = hooks.VALIDATIONS["samples"](experiment, mesh)
    params = load_ema(experiment, trained, mesh).params
    value = validate(params)
    assert value == validate(params) and value > 0
    assert validate(jax.tree.map(lambda x: x + 3.0, params)) != value
    assert np.isnan(validate(jax.tree.map(lambda x: x * np.nan, params)))  # and never the best


def test_what_cannot_be_is_refused(config, trained, tmp_path: pathlib.Path) -> None:
    other = ConfigDict(config.to_dict())
    other.train.validate_with = "fid"
    with pytest.raises(ValueError, match=r"train\.validate_with = 'fid' is not known.*bpd_fast"):
        hooks.train_with_hooks(build(other), tmp_path / "a")
    other = ConfigDict(config.to_dict())
    other.train.validate_images = 1497
    with pytest.raises(ValueError, match=r"validate_images = 1497 leaves none of the 1497 images"):
        hooks.train_with_hooks(build(other), tmp_path / "d")
    other.train.validate_every = 3
    with pytest.raises(ValueError, match=r"train\.validate_every = 3 must be a multiple"):
        hooks.train_with_hooks(build(other), tmp_path / "b")
    other = ConfigDict(config.to_dict())
    other.checkpoint = "first"
    with pytest.raises(
        ValueError, match=r"config\.checkpoint = 'first' is not known.*latest, best"
    ):
        build(other)
    other.checkpoint = "best"
    with pytest.raises(CheckpointError, match="holds no best checkpoint"):
        load_ema(build(other), tmp_path / "none", devices.make_mesh())
