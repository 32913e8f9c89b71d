"""Validation during training: the same number as afterwards, and the best checkpoint kept apart."""

import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, evaluate, runs, validation
from experiments.build import build
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.metrics import classifier
from experiments.outcome import Outcome
from experiments.sample import load_ema
from experiments.train import train

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
    assert train(build(config), workdir) is Outcome.FINISHED
    return workdir


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


def test_the_number_is_that_of_an_evaluation_afterwards(config, trained) -> None:
    other = ConfigDict(config.to_dict())
    other.checkpoint, other.evaluate.metrics = "best", "bpd_fast"
    results = evaluate.evaluate(build(other), trained)
    values = validations(trained)
    step, _ = load_ema(build(other), trained, devices.make_mesh())
    assert values[step] == min(values.values())
    value = results["bpd_fast"]["bits_per_dim_estimate"]["value"]
    assert value == pytest.approx(values[step], rel=1e-5)


def test_a_later_and_worse_step_leaves_the_best_alone(config, trained, tmp_path) -> None:
    experiment, mesh = build(config), devices.make_mesh()
    _, params = load_ema(experiment, trained, mesh)
    content = runs.config_to_dict(config)
    meta = {"config": content, "fingerprint": "x", "image_shape": (8, 8, 1)}
    first = validation.Validation(experiment, tmp_path, mesh)
    value = first.run(1, {"w": np.zeros(2)}, params, meta)
    worse = jax.tree.map(lambda x: x + 3.0, params)
    assert first.run(2, {"w": np.zeros(2)}, worse, meta) > value
    first.close()
    again = validation.Validation(experiment, tmp_path, mesh)
    assert again.best == value and again.step == 1
    again.close()
    with Checkpoints(tmp_path / "best") as checkpoints:
        assert checkpoints.latest_step() == 1


def test_what_is_no_number_is_never_the_best(config, tmp_path, monkeypatch) -> None:
    """Nothing is smaller than NaN, which would stay the best; and a repeated step is no news."""
    values = iter([float("nan"), 5.0, 4.0, 3.0])
    fixed = {"bpd_fast": lambda experiment, mesh: lambda params: next(values)}
    monkeypatch.setattr(validation, "VALIDATIONS", fixed)
    validate = validation.Validation(build(config), tmp_path, devices.make_mesh())
    arrays, meta = {"w": np.zeros(2)}, {"config": runs.config_to_dict(config)}
    validate.run(1, arrays, arrays, meta)
    assert validate.best is None
    validate.run(4, arrays, arrays, meta)
    validate.run(2, arrays, arrays, meta)
    assert (validate.step, validate.best) == (4, 5.0)
    validate.run(6, arrays, arrays, meta)
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
        validation.Validation(build(other), trained, devices.make_mesh())
    other = ConfigDict(config.to_dict())
    other.train.validate_with, other.evaluate.extractor = "samples", "classifier"
    with pytest.raises(ValueError, match=r"validate_with: bpd_fast then, samples now"):
        validation.Validation(build(other), trained, devices.make_mesh())


def test_samples_can_be_what_is_validated(config, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "RECIPE", classifier.Recipe(channels=(8, 16), steps=20))
    other = ConfigDict(config.to_dict())
    other.train.validate_with = "samples"
    experiment, mesh = build(other), devices.make_mesh()
    validate = validation.VALIDATIONS["samples"](experiment, mesh)
    _, params = load_ema(experiment, trained, mesh)
    value = validate(params)
    assert value == validate(params) and value > 0
    assert validate(jax.tree.map(lambda x: x + 3.0, params)) != value


def test_what_cannot_be_is_refused(config, trained, tmp_path: pathlib.Path) -> None:
    other = ConfigDict(config.to_dict())
    other.train.validate_with = "fid"
    with pytest.raises(ValueError, match=r"train\.validate_with = 'fid' is not known.*bpd_fast"):
        train(build(other), tmp_path / "a")
    other = ConfigDict(config.to_dict())
    other.train.validate_every = 3
    with pytest.raises(ValueError, match=r"train\.validate_every = 3 must be a multiple"):
        train(build(other), tmp_path / "b")
    other = ConfigDict(config.to_dict())
    other.checkpoint = "first"
    with pytest.raises(
        ValueError, match=r"config\.checkpoint = 'first' is not known.*latest, best"
    ):
        build(other)
    other.checkpoint = "best"
    with pytest.raises(CheckpointError, match="holds no best checkpoint"):
        load_ema(build(other), tmp_path / "none", devices.make_mesh())
