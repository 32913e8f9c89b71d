"""A run of the program before its modules were rearranged is a run of it now."""

import json
import pathlib
import tarfile
from typing import Any

import jax
import numpy as np
import pytest

import experiments
from experiments import devices, evaluate, hooks, sample
from experiments.build import build
from experiments.configs import saved
from experiments.data.dataset import read_images
from experiments.state import load_ema
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results

ARCHIVE = pathlib.Path(__file__).parents[1] / "fixtures" / "old_run.tar.gz"


@pytest.fixture
def old(tmp_path: pathlib.Path) -> pathlib.Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def values(section: dict[str, Any]) -> dict[str, float]:
    return {name: number["value"] for name, number in section["values"].items()}


@pytest.mark.slow
def test_its_samples_and_numbers_come_again(old: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Its compiler optimised and that of the tests does not: a few pixels move by one level."""
    before = read_results(old)
    images = np.load(old / "samples" / "samples.npz")["arr_0"].astype(int)
    config = saved.get_config(str(old))
    config.data.data_dir = str(data_dir)
    config.evaluate.metrics = "bpd,bpd_fast,baselines"
    experiment = build(config)
    loaded = load_ema(experiment, old, devices.make_mesh(jax.devices()[:1]))
    sample.sample(experiment, old, loaded)
    evaluate.evaluate(experiment, old, loaded)
    now = read_results(old)
    again = np.load(old / "samples" / "samples.npz")["arr_0"].astype(int)
    assert (again != images).mean() < 0.02 and np.abs(again - images).max() <= 16
    found = values(now["bpd"]) | values(now["baselines"])
    assert set(found) == set(values(before["bpd"]))
    for name, value in values(before["bpd"]).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    for name, value in values(before["bpd_fast"]).items():
        assert values(now["bpd_fast"])[name] == pytest.approx(value, rel=1e-4)
    assert now["train"] == before["train"]


@pytest.mark.slow
def test_it_trains_on(old: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Parameters, average, moments and the losses by timestep, from where they were."""
    config = saved.get_config(str(old))
    config.data.data_dir = str(data_dir)
    assert config.train.num_steps == 24
    config.train.num_steps = 28
    assert hooks.train_with_hooks(build(config), old) is Outcome.FINISHED
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12, 16, 20, 24, 28]
    assert abs(lines[-1]["loss"] - lines[-2].get("loss", lines[-3].get("loss"))) < 0.5
    with pytest.raises(ValueError, match=r"seed: 0 then, 3 now"):
        config.seed, config.train.num_steps = 3, 32
        hooks.train_with_hooks(build(config), old)


def test_it_is_a_model_in_python(old: pathlib.Path, data_dir: pathlib.Path) -> None:
    content = json.loads((old / "config.json").read_text())
    content["data"]["data_dir"] = str(data_dir)
    (old / "config.json").write_text(json.dumps(content))
    model = experiments.load(old)
    test = read_images(model.experiment.dataset.open("test"), 0, 10)
    bits = model.bits_per_dim(test["image"], test["label"].tolist())
    expected = values(read_results(old)["bpd"])["bits_per_dim"]
    assert bits.mean() == pytest.approx(expected, rel=1e-4)
    assert experiments.load(old, checkpoint="best").origin.selected_on != "nothing"
