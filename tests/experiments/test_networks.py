"""Another network than the U-Net goes through the whole program by its name alone."""

import pathlib
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from experiments import train
from experiments.build import build
from experiments.sample import check
from experiments.workdir.config import read_config
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments import modes
from tests.experiments.test_build import DIT


@pytest.mark.slow
def test_a_dit_is_trained_on_labels_sampled_without_and_measured(
    tiny_unet: Callable[[], ConfigDict], tmp_path: pathlib.Path
) -> None:
    config = tiny_unet()
    options = dict(class_conditional=True, label_dropout=0.5, dropout=0.1, fourier_features=())
    config.model = ConfigDict(DIT | options)
    config.train.log_every = config.train.num_steps = config.train.checkpoint_every = 4
    assert train.train(build(config), tmp_path) is Outcome.FINISHED
    again = read_config(tmp_path)
    assert again.model.to_dict() == config.model.to_dict()
    for labels in ("none", "3"):
        again.sample.labels = labels
        modes.sample(build(again), tmp_path)
        assert read_results(tmp_path)["sample"]["labels"] == labels
    modes.evaluate(build(again), tmp_path)
    bits = read_results(tmp_path)["bpd"]["values"]["bits_per_dim"]["value"]
    assert 0 < bits < 20
    again.model.label_dropout = 0.0
    again.sample.labels = "none"
    with pytest.raises(ValueError, match="model.label_dropout above 0"):
        check(build(again))
