"""The modes of the program on a working directory, as `main` runs them."""

import pathlib
from typing import Any

from experiments import devices
from experiments import evaluate as evaluation
from experiments import sample as sampling
from experiments.experiment import Experiment
from experiments.state import load_ema


def sample(
    experiment: Experiment, workdir: pathlib.Path, place: sampling.Place = sampling.OWN
) -> dict[str, Any]:
    loaded = load_ema(experiment, workdir, devices.make_mesh())
    return sampling.sample(experiment, workdir, loaded, place)


def evaluate(experiment: Experiment, workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    loaded = load_ema(experiment, workdir, devices.make_mesh())
    return evaluation.evaluate(experiment, workdir, loaded)
