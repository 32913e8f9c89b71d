"""What experiments.main leaves in its folder is what a report of it reads."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import main, train
from experiments.build import build
from experiments.reports import compare, report
from experiments.reports.collect import collect
from experiments.workdir.config import config_to_dict
from experiments.workdir.outcome import Outcome
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


def test_a_number_of_parameters_that_were_trained_on_carries_their_step(
    plain: Callable[[], ConfigDict], tmp_path: pathlib.Path
) -> None:
    """At its end, side by side with others, and in reports; measured again, it has none."""
    config, workdir = plain(), tmp_path / "run"
    config.evaluate.metrics, config.evaluate.num_images = "baselines", 4
    said = "of step 8, and the training ended at step 12"

    def told() -> list[str]:
        ours = compare.compare(["a", "b"], [compare.read(workdir), {}])
        return ["\n".join(main.describe_end(build(config), workdir, 1.0)), ours]

    for num_steps, measure, old in ((8, True, False), (12, False, True), (12, True, False)):
        config.train.num_steps = num_steps
        experiment = build(config)
        assert train.train(experiment, workdir) is Outcome.FINISHED
        if measure:
            evaluate(experiment, workdir)
        assert [said in text for text in told()] == [old] * 2
        if old:
            report.write(workdir, tmp_path / "report")
            assert said in (tmp_path / "report" / "report.md").read_text()
