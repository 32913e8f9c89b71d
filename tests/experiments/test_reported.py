"""What experiments.main leaves in its folder is what a report of it reads."""

import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.build import build
from experiments.reports import report
from experiments.reports.collect import collect
from experiments.workdir.config import config_to_dict
from experiments.workdir.protocols import training_fields
from experiments.workdir.run import finite_windows
from tests.experiments.modes import evaluate, sample


def test_a_report_reads_a_run(
    trained: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    config, workdir = trained
    experiment = build(config)
    sample(experiment, workdir)
    found = evaluate(experiment, workdir)
    collection = collect(workdir)
    (run,) = collection.runs
    assert collection.problems == ()
    assert (run.state, run.seed, run.num_steps) == ("finished", 0, config.train.num_steps)
    assert run.training == training_fields(config_to_dict(config))
    for name, values in found.items():
        assert run.sections[name].values == values
    assert run.sample["num_steps"] == config.schedule.num_timesteps
    assert run.bound[str(config.schedule.num_timesteps)]["rate"] == pytest.approx(
        found["bpd"]["rate"]["value"]
    )
    records, damaged = finite_windows(workdir)
    assert [r["step"] for r in records] == [4, 8] and damaged == 0
    assert run.last_window["step"] == 8
    assert run.last_window["loss"] == pytest.approx(records[-1]["loss"])
    report.write(workdir, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"{found['bpd']['bits_per_dim']['value']:.4g}" in text
    with np.load(workdir / "samples" / "samples.npz", allow_pickle=False) as stored:
        assert len(stored["arr_0"]) == config.sample.num_images
    assert (tmp_path / "report" / "samples0.png").is_file()
