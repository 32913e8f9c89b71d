"""What a trained model can be asked for: the modes of the program beside training."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from ml_collections import ConfigDict

from experiments import evaluate, sample
from experiments.build import build
from experiments.configs import by_size
from experiments.experiment import Experiment
from experiments.figures import page

# Refuses a config that a mode would fail on, before anything is computed.
CHECKS: MappingProxyType[str, Callable[[Experiment], None]] = MappingProxyType(
    {"sample": sample.check, "evaluate": evaluate.check, "figures": page.check}
)


def checked(config: ConfigDict, modes: Sequence[str]) -> Experiment:
    """The experiment of a config that can be built, and that the modes would not fail on.

    Args:
        config: as it is before `by_size.fill`.
        modes: keys of CHECKS.

    Raises:
        ValueError, FileNotFoundError, ImportError: saying what is wrong.
    """
    experiment = build(by_size.fill(config))
    for mode in modes:
        CHECKS[mode](experiment)
    return experiment
