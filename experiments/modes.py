"""Modes of the program, and what each of them refuses before anything is computed."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from ml_collections import ConfigDict

from experiments import evaluate, hooks, sample
from experiments.build import build
from experiments.experiment import Experiment
from experiments.figures import page

# Refuses a config that a mode would fail on.
CHECKS: MappingProxyType[str, Callable[[Experiment], None]] = MappingProxyType(
    {
        "train": hooks.check,
        "sample": sample.check,
        "evaluate": evaluate.check,
        "figures": page.check,
    }
)


def checked(config: ConfigDict, modes: Sequence[str]) -> Experiment:
    """The experiment of a config that can be built, and that the modes would not fail on.

    Args:
        config: of the experiment.
        modes: keys of CHECKS.

    Raises:
        ValueError, FileNotFoundError, ImportError: saying what is wrong.
    """

    def check(experiment: Experiment) -> None:
        for mode in modes:
            CHECKS[mode](experiment)

    return build(config, check)
