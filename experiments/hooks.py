"""What a training does now and then: previews, and validations that keep the best checkpoint."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import console, devices, images
from experiments.data.dataset import hold_out
from experiments.drawing import draw, make_sample_fn
from experiments.experiment import Experiment
from experiments.features.extractors import choose_extractor
from experiments.features.references import make_judge
from experiments.methods import latent
from experiments.metrics import bound
from experiments.optimizers import accumulated
from experiments.state import BOUND, FROM_NEWEST, Start, TrainState, facts, save, training_images
from experiments.train import Hook, check_cadence, train
from experiments.workdir import origin
from experiments.workdir.checkpoint import BEST, Checkpoints, DamagedCheckpoint
from experiments.workdir.config import (
    check_same,
    config_from_dict,
    config_to_dict,
    from_another,
)
from experiments.workdir.outcome import Outcome
from experiments.workdir.protocols import MODEL, TRAINING
from experiments.workdir.results import read_results

Validate = Callable[[Any], float]  # EMA parameters -> a number, the smaller the better
# What a validation's numbers depend on beside the training: all must agree for a best of them.
MEASURED_BY = MappingProxyType(
    {
        BOUND: (
            *("train.validate_with", "train.validate_images"),
            *("evaluate.num_strata", "evaluate.decoder", "evaluate.clip_denoised"),
        ),
        "samples": (
            *("train.validate_with", "train.validate_images", "train.preview_num_steps"),
            *("sample.sampler", "sample.spacing", "sample.threshold", "evaluate.extractor"),
            *("sample.guidance_scale", "sample.guidance_interval"),
        ),
    }
)


def bits_per_dim(experiment: Experiment, mesh: Mesh) -> Validate:
    """The estimated bound of images held out of train, with the same timesteps every time."""
    count = experiment.config.train.validate_images
    _, source = hold_out(experiment.open("train"), count)
    estimate = bound.make_estimate(experiment, source, count, mesh, quiet=True)
    return lambda params: float(estimate(params).mean())


def sample_distance(experiment: Experiment, mesh: Mesh) -> Validate:
    """The Fréchet distance to the train split of samples in preview_num_steps steps, same noise."""
    config = experiment.config.train
    judge = make_judge(experiment.dataset, experiment.config.evaluate, mesh, drop=1)
    sample_fn = make_sample_fn(experiment, mesh, num_steps=config.preview_num_steps)

    def validate(params: Any) -> float:
        drawn = draw(sample_fn, params, 0, config.validate_images, judge.batch_size, mesh)
        drawn.warn()
        if drawn.not_finite:
            return float("nan")  # of no distance, and so never the best
        return judge.distance(judge.features(drawn.samples, mesh).features)

    return validate


VALIDATIONS: MappingProxyType[str, Callable[[Experiment, Any], Validate]] = MappingProxyType(
    {BOUND: bits_per_dim, "samples": sample_distance}
)


def selected_on(experiment: Experiment) -> str:
    """What the best checkpoint is chosen by, for the protocols of its numbers."""
    config = experiment.config.train
    if config.validate_with == BOUND:
        return origin.held_out_bits(config.validate_images)
    return origin.sample_distance(config.validate_images, config.preview_num_steps)


def _with_own_spacing(content: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """A config as JSON has it, with the name of the sampler's spacing where it says auto.

    So that a best checkpoint that is older than auto was chosen as one is now.
    """
    chain, sample = experiment.method.chain, content.get("sample", {})
    if sample.get("spacing") != {"name": "auto"}:
        return content
    own = chain.spacing["name"] if chain else "uniform"
    return content | {"sample": sample | {"spacing": {"name": own}}}


class Validation:
    """Runs config.train.validate_with now and then and keeps the best checkpoint apart.

    A training that goes on also goes on from its best checkpoint, `step` and `best`; one that is
    damaged is set aside, and the next validation is the best again.

    Raises:
        ValueError: if the best checkpoint in `workdir` is of another training or was chosen by
            another number.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, mesh: Mesh, new_settings: bool = False
    ) -> None:
        config = experiment.config
        self.name = config.train.validate_with
        self.selected_on = selected_on(experiment)
        self._mesh, self._workdir = mesh, workdir
        self._facts = facts(experiment, training_images(experiment))
        self._checkpoints = Checkpoints(workdir / BEST, keep=1)
        self.best: float | None = None
        self.step = self._checkpoints.latest_step()
        meta: dict[str, Any] = {}
        if self.step is not None:
            try:
                meta = self._checkpoints.meta(self.step)
            except DamagedCheckpoint as error:
                console.log(f"WARNING   {error}")
                self._checkpoints.set_aside(self.step - 1)
                self.step = None
        if self.step is not None:
            fields = (*(MODEL if new_settings else TRAINING), *MEASURED_BY[self.name])
            then, now = (
                _with_own_spacing(content, experiment)
                for content in (meta["config"], config_to_dict(config))
            )
            more = from_another(workdir)
            check_same(then, config_from_dict(now), fields, workdir / BEST, more)
            before = origin.of_checkpoint(meta, {}).selected_on
            if before != self.selected_on:
                raise ValueError(
                    f"{workdir / BEST} was chosen by {before}, and validations measure "
                    f"{self.selected_on} now. Move the folder away, or choose another --workdir."
                )
            self.best = meta["validation"]
        # Made when first needed: a finished training needs none, and one may train a classifier.
        self._validate = functools.cache(lambda: VALIDATIONS[self.name](experiment, mesh))

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """Validates the EMA parameters of a step, and saves it where no earlier one was better.

        Steps up to the best, which a continuation from an older checkpoint repeats, were judged.
        """
        value = self._validate()(devices.whole(state.ema_params, self._mesh))
        new = self.step is None or step > self.step
        better = new and bool(np.isfinite(value)) and (self.best is None or value < self.best)
        if better:
            self.best, self.step = value, step
            chosen = {"validation": value, "selected_on": self.selected_on}
            section = read_results(self._workdir).get("train", {})
            began = {name: section[name] for name in ("origin",) if name in section}
            save(self._checkpoints, step, state, self._facts | chosen | began)
        best = "" if self.best is None else f", best {self.best:.4f}"
        note = ", the best so far" if better else best
        console.log(f"validated step {step:,}: {self.name} {value:.4f}{note}")
        return {f"validation_{self.name}": value}

    def wait(self) -> None:
        """Waits for the last save."""
        self._checkpoints.wait()

    def close(self) -> None:
        """As `wait`; nothing can be saved after it."""
        self._checkpoints.close()


def make_preview(
    experiment: Experiment, folder: Path, mesh: Mesh
) -> Callable[[int, TrainState], dict[str, Any]]:
    """Writes a grid of the same few EMA samples every time, `folder`/STEP.png."""
    config = experiment.config.train
    sample_fn = make_sample_fn(experiment, mesh, num_steps=config.preview_num_steps)
    batch_size = devices.round_up(config.preview_images, mesh)

    def preview(step: int, state: TrainState) -> dict[str, Any]:
        params = devices.whole(state.ema_params, mesh)
        drawn = draw(sample_fn, params, 0, config.preview_images, batch_size, mesh)
        drawn.warn()
        grid = images.grid(drawn.samples)
        if devices.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            images.save(folder / f"{step:08d}.png", grid)
            console.log(f"preview   step {step:,}: {folder / f'{step:08d}.png'}")
        return {"preview": grid}

    return preview


def check(experiment: Experiment) -> None:
    """Refuses a config that training would fail on, before anything is read or compiled.

    Raises:
        ValueError: naming the field.
        FileNotFoundError: for weights that validations need, and that are missing.
    """
    config = experiment.config
    mesh = devices.make_mesh(**config.mesh)
    check_cadence(config.train, mesh)

    def loss(w: jax.Array, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.mean(w * x), x

    # A batch that cannot be cut as clip and accumulation want is refused when they are traced.
    parts = accumulated(jax.value_and_grad(loss, has_aux=True), config.train.accumulate_steps)
    w, batch = np.zeros((), np.float32), np.zeros(config.train.batch_size, np.float32)
    jax.eval_shape(
        functools.partial(experiment.gradients, mesh, parts), w, batch, jax.random.key(0)
    )
    if config.train.validate_every and config.train.validate_with == "samples":
        evaluate = config.evaluate
        choose_extractor(evaluate.extractor, evaluate.inception_weights, experiment.dataset)


def train_with_hooks(
    experiment: Experiment,
    workdir: Path,
    start: Start = FROM_NEWEST,
) -> Outcome:
    """`train` with the previews and validations that config.train asks for.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: as `train` and `Validation` do.
    """
    config, hooks = experiment.config.train, []
    mesh = devices.make_mesh(**experiment.config.mesh)
    check_cadence(config, mesh)
    latent.keep(experiment.config.encoder, experiment.dataset, workdir)
    with contextlib.ExitStack() as stack:
        if config.preview_every:
            preview = make_preview(experiment, workdir / "previews", mesh)
            hooks.append(Hook(config.preview_every, preview))
        if config.validate_every:
            validation = Validation(experiment, workdir, mesh, start.diverged)
            stack.callback(validation.close)
            hooks.append(Hook(config.validate_every, validation, validation.wait))
        return train(experiment, workdir, hooks, start)
