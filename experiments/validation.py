"""A number now and then during training, and the checkpoint that it likes best."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import bound, logs, sample_quality
from experiments.build import Experiment, choose
from experiments.checkpoint import Checkpoints
from experiments.sample import draw, make_sample_fn

Validate = Callable[[Any], float]  # EMA parameters -> a number, the smaller the better
BEST = "best"  # folder in the working directory


def bits_per_dim(experiment: Experiment, mesh: Any) -> Validate:
    """The estimated bound of the first held-out images, with the same timesteps every time."""
    source = experiment.dataset.open("test")
    count = min(experiment.config.train.validate_images, len(source))
    estimate = bound.make_estimate(experiment, source, count, mesh, quiet=True)
    return lambda params: float(estimate(params).mean())


def sample_distance(experiment: Experiment, mesh: Any) -> Validate:
    """The Fréchet distance to the train split of samples in preview_num_steps steps, same noise."""
    train = experiment.config.train
    judge = sample_quality.make_judge(experiment, mesh, drop=1)
    sample_fn = make_sample_fn(experiment, mesh, num_steps=train.preview_num_steps)

    def validate(params: Any) -> float:
        pictures, _ = draw(sample_fn, params, 0, train.validate_images, judge.batch_size, mesh)
        return judge.distance(judge.look(pictures, mesh).features)

    return validate


VALIDATIONS: MappingProxyType[str, Callable[[Experiment, Any], Validate]] = MappingProxyType(
    {"bpd_fast": bits_per_dim, "samples": sample_distance}
)


class Validation:
    """Runs config.train.validate_with now and then and keeps the best checkpoint apart."""

    def __init__(self, experiment: Experiment, workdir: Path, mesh: Any) -> None:
        self.name = experiment.config.train.validate_with
        self._validate = choose(VALIDATIONS, self.name, "train.validate_with")(experiment, mesh)
        self._checkpoints = Checkpoints(workdir / BEST, keep=1)
        step = self._checkpoints.latest_step()
        self.best = None if step is None else self._checkpoints.meta(step)["validation"]

    def run(self, step: int, state: Any, ema: Any, meta: dict[str, Any]) -> float:
        """Validates the EMA parameters of a step, and saves it where no earlier one was better."""
        value = self._validate(ema)
        better = self.best is None or value < self.best
        if better:
            self.best = value
            self._checkpoints.save(step, state, ema, meta | {"validation": value})
        note = ", the best so far" if better else f", best {self.best:.4f}"
        logs.say(f"validated step {step:,}: {self.name} {value:.4f}{note}")
        return value

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpoints.close()
