"""What every metric is given, and what it gives back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import devices
from experiments.data.dataset import Source, fingerprint
from experiments.drawing import sampling_protocol
from experiments.experiment import Experiment
from experiments.files.atomic import digest
from experiments.methods.method import dtype_of
from experiments.workdir.config import config_to_dict
from experiments.workdir.origin import Origin
from experiments.workdir.protocols import MODEL


class Metric(NamedTuple):
    """A metric that config.evaluate.metrics can name.

    check: refuses a config that `measure` would fail on, before anything is computed.
    measure: what `evaluate` records.
    of_images: whether it is of the images that config.evaluate.num_images takes of the split.
    """

    check: Callable[[Experiment], None]
    measure: Callable[["Context"], "Result"]
    of_images: bool = True


def metric_names(config: ConfigDict) -> list[str]:
    """What config.evaluate.metrics names, separated by commas; `config` is that section."""
    return [name.strip() for name in config.metrics.split(",")]


class Context(NamedTuple):
    """What every metric works on.

    weights: a name for the parameters by their values: a step alone does not tell two trainings in
        the same folder apart.
    origin: what the weights are, and how their checkpoint was chosen.
    """

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    step: int
    params: Any
    source: Source
    num_images: int
    weights: str
    origin: Origin

    def folder(self, metric: str, protocol: Mapping[str, Any]) -> Path:
        """Where the metric keeps its parts: another folder for anything that they depend on."""
        config = config_to_dict(self.experiment.config)
        facts = {name: config[name] for name in ("seed", "data")} | {"weights": self.weights}
        facts |= {name: config[name] for name in MODEL if name in config}
        return self.workdir / "evaluation" / f"{metric}_{digest([facts, dict(protocol)])}"

    @property
    def sampling(self) -> dict[str, Any]:
        """The protocol of samples of the parameters, but for how they are rounded."""
        return sampling_protocol(self.experiment, self.step, self.origin)


class Result(NamedTuple):
    """What a metric found.

    values: quantity -> {"value": ..., "standard_error": ..., ...}.
    protocol: everything that must agree before two values of a quantity may be compared.
    lines: for the terminal.
    scratch: folders of parts that nobody needs once the whole evaluation is over. Until then an
        interruption of a later metric costs this one nothing.
    """

    values: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    files: tuple[str, ...]
    lines: list[str]
    scratch: tuple[Path, ...] = ()


def number(value: float, error: float | None = None, **more: Any) -> dict[str, Any]:
    """A value, with its standard error where it has one."""
    return {"value": float(value)} | ({} if error is None else {"standard_error": error}) | more


def line(name: str, value: dict[str, Any], detail: str = "") -> str:
    """A row for the terminal."""
    error = value.get("standard_error")
    spread = "" if error is None else f" +- {error:.3f}"
    return f"  {name:<24} {value['value']:8.3f}{spread}{detail}"


def image_protocol(context: Context) -> dict[str, Any]:
    """Which images a likelihood is of, and under which weights."""
    config = context.experiment.config.evaluate
    return {
        "dataset": context.experiment.dataset.name,
        "fingerprint": fingerprint(context.experiment.dataset.name, context.source),
        "split": config.split,
        "num_images": context.num_images,
        "split_images": len(context.source),
        **context.origin._asdict(),
        "checkpoint": context.experiment.config.checkpoint,
        "checkpoint_step": context.step,
        **_variance(context.experiment.config),
        "num_levels": context.experiment.dataset.num_levels,
        "precision": devices.REPORTED,
        "dtype": dtype_of(context.experiment.config),
        "seed": context.experiment.config.seed,
        "num_timesteps": context.experiment.method.num_steps,
    }


def _variance(config: ConfigDict) -> dict[str, str]:
    """That of a chain, which other methods do not have."""
    return {"variance": config.variance.name} if "variance" in config else {}


def check_finite(context: Context, first: int, finite: np.ndarray) -> None:
    """Refuses to judge samples of which some are not finite; what was drawn is kept.

    Args:
        first: index of the first sample.
        finite: bool[B], of each.

    Raises:
        ValueError: saying how many they are, and what may help.
    """
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of the samples {first} to {first + len(finite) - 1} are not "
            f"finite, so that nothing can be said of them; the {context.origin.weights} weights of "
            f"step {context.step:,} give such images. Evaluate another checkpoint, or set "
            "config.sample.threshold to clip where it is none."
        )


def which_images(context: Context) -> str:
    """For the terminal; an incomplete split is said to be one."""
    some = "all" if context.num_images == len(context.source) else "first"
    return f"{some} {context.num_images} {context.experiment.config.evaluate.split} images"
