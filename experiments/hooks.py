"""What a training does now and then: previews, and validations that keep the best checkpoint."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments import console, devices, images
from experiments.build import Experiment
from experiments.data.dataset import hold_out
from experiments.features.references import make_judge
from experiments.metrics import bound
from experiments.sample import draw, make_sample_fn
from experiments.state import BOUND
from experiments.workdir import origin
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import check_same
from experiments.workdir.protocols import TRAINING

Validate = Callable[[Any], float]  # EMA parameters -> a number, the smaller the better
BEST = "best"  # folder in the working directory
# What a validation's numbers depend on beside the training: all must agree for a best of them.
MEASURED_BY = MappingProxyType(
    {
        BOUND: (
            *("train.validate_with", "train.validate_images"),
            *("evaluate.num_strata", "evaluate.decoder", "evaluate.clip_denoised"),
        ),
        "samples": (
            *("train.validate_with", "train.validate_images", "train.preview_num_steps"),
            *("sample.sampler", "sample.clip_denoised", "evaluate.extractor"),
        ),
    }
)


def bits_per_dim(experiment: Experiment, mesh: Any) -> Validate:
    """The estimated bound of images held out of train, with the same timesteps every time."""
    count = experiment.config.train.validate_images
    _, source = hold_out(experiment.dataset.open("train"), count)
    estimate = bound.make_estimate(experiment, source, count, mesh, quiet=True)
    return lambda params: float(estimate(params).mean())


def sample_distance(experiment: Experiment, mesh: Any) -> Validate:
    """The Fréchet distance to the train split of samples in preview_num_steps steps, same noise."""
    train = experiment.config.train
    judge = make_judge(experiment, mesh, drop=1)
    sample_fn = make_sample_fn(experiment, mesh, num_steps=train.preview_num_steps)

    def validate(params: Any) -> float:
        drawn = draw(sample_fn, params, 0, train.validate_images, judge.batch_size, mesh)
        drawn.warn()
        if drawn.not_finite:
            return float("nan")  # of no distance, and so never the best
        return judge.distance(judge.look(drawn.samples, mesh).features)

    return validate


VALIDATIONS: MappingProxyType[str, Callable[[Experiment, Any], Validate]] = MappingProxyType(
    {BOUND: bits_per_dim, "samples": sample_distance}
)


def selected_on(experiment: Experiment) -> str:
    """What the best checkpoint is chosen by, for the protocols of its numbers."""
    train = experiment.config.train
    if train.validate_with == BOUND:
        return origin.held_out_bits(train.validate_images)
    return origin.sample_distance(train.validate_images, train.preview_num_steps)


class Validation:
    """Runs config.train.validate_with now and then and keeps the best checkpoint apart.

    A training that goes on also goes on from its best checkpoint, `step` and `best`.

    Raises:
        ValueError: if the best checkpoint in `workdir` is of another training or was chosen by
            another number.
    """

    def __init__(self, experiment: Experiment, workdir: Path, mesh: Any) -> None:
        config = experiment.config
        self.name = config.train.validate_with
        self.selected_on = selected_on(experiment)
        self._checkpoints = Checkpoints(workdir / BEST, keep=1)
        self.best: float | None = None
        self.step = self._checkpoints.latest_step()
        if self.step is not None:
            meta = self._checkpoints.meta(self.step)
            fields = (*TRAINING, *MEASURED_BY[self.name])
            check_same(meta["config"], config, fields, workdir / BEST)
            before = origin.of_checkpoint(meta, {}).selected_on
            if before != self.selected_on:
                raise ValueError(
                    f"{workdir / BEST} was chosen by {before}, and validations measure "
                    f"{self.selected_on} now. Move the folder away, or choose another --workdir."
                )
            self.best = meta["validation"]
        self._validate = VALIDATIONS[self.name](experiment, mesh)

    def run(self, step: int, state: Any, ema: Any, meta: dict[str, Any]) -> float:
        """Validates the EMA parameters of a step, and saves it where no earlier one was better.

        Steps up to the best, which a continuation from an older checkpoint repeats, were judged.
        """
        value = self._validate(ema)
        new = self.step is None or step > self.step
        better = new and bool(np.isfinite(value)) and (self.best is None or value < self.best)
        if better:
            self.best, self.step = value, step
            chosen = {"validation": value, "selected_on": self.selected_on}
            self._checkpoints.save(step, state, ema, meta | chosen)
        best = "" if self.best is None else f", best {self.best:.4f}"
        note = ", the best so far" if better else best
        console.log(f"validated step {step:,}: {self.name} {value:.4f}{note}")
        return value

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpoints.close()


def make_preview(experiment: Experiment, mesh: Any) -> Callable[[Any, Path], None]:
    """(params, path) -> None, which writes a grid of the same few samples every time."""
    train = experiment.config.train
    sample_fn = make_sample_fn(experiment, mesh, num_steps=train.preview_num_steps)
    batch_size = devices.round_up(train.preview_images, mesh)

    def preview(params: Any, path: Path) -> None:
        drawn = draw(sample_fn, params, 0, train.preview_images, batch_size, mesh)
        drawn.warn()
        if devices.is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save_grid(path, drawn.samples)

    return preview
