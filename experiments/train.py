"""Training (DDPM Algorithm 1): the step, a pure function, and the loop around it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import random
from experiments import console, devices, images
from experiments.build import Experiment
from experiments.console import stop_requested
from experiments.data import loader
from experiments.data.dataset import fingerprint, load_in_memory
from experiments.hooks import Validation, make_preview
from experiments.optimizers import update_ema
from experiments.state import TrainState, fresh_state, held_out, restore, training_images
from experiments.workdir import outcome, training_log
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import config_to_dict, write_config
from experiments.workdir.origin import EMA
from experiments.workdir.outcome import Divergence, Outcome, Watch
from experiments.workdir.results import write_results


class Examples(NamedTuple):
    """A batch with the noise that its loss is taken at."""

    x_0: jax.Array  # f32[B, H, W, C]
    t: jax.Array  # i32[B]
    eps: jax.Array  # f32[B, H, W, C]
    weight: jax.Array  # f32[B], of each example's loss in the mean
    labels: jax.Array  # i32[B]


def draw_examples(experiment: Experiment, state: TrainState, batch: dict[str, Any]) -> Examples:
    """Flips, timesteps and noise of one batch, each a function of (seed, step, example)."""
    x_0 = images.to_model(batch["image"], experiment.dataset.num_levels)
    indices = jnp.arange(x_0.shape[0])

    def keys(name: str) -> jax.Array:
        key = random.stream(experiment.config.seed, name)
        return random.per_index(jax.random.fold_in(key, state.step), indices)

    if experiment.config.train.flip:
        x_0 = images.random_flip(keys("flip"), x_0)
    t, weight = experiment.timesteps.sample(state.timestep_state, keys("timestep"))
    return Examples(x_0, t, random.normal(keys("noise"), 0, x_0.shape[1:]), weight, batch["label"])


def make_train_step(
    experiment: Experiment, mesh: Mesh
) -> Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """One step of Algorithm 1: (state, batch of uint8 images) -> (state, sums of metrics)."""
    config = experiment.config
    num_timesteps = experiment.model.schedule.num_timesteps

    def objective(params: Any, examples: Examples, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_0, t, eps, weight, labels = examples
        inputs = experiment.labels(labels)
        losses = experiment.loss_fn(
            params, x_0, t, eps, train=True, rngs={"dropout": key}, **inputs
        )
        return jnp.mean(weight * losses), losses

    def train_step(
        state: TrainState, batch: dict[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        examples = draw_examples(experiment, state, batch)
        dropout = jax.random.fold_in(random.stream(config.seed, "dropout"), state.step)
        gradient = experiment.gradients(mesh, objective, state.params, examples, dropout)
        updates, opt_state = experiment.optimizer.update(
            gradient.value, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, config.ema_decay)
        timestep_state = experiment.timesteps.update(
            state.timestep_state, examples.t, gradient.losses
        )
        quartile = examples.t * 4 // num_timesteps
        metrics = {
            "steps": jnp.ones(()),
            "loss": jnp.mean(examples.weight * gradient.losses),
            "grad_norm": gradient.norm,
            "clipped_share": gradient.clipped_share,
            "quartile_loss": jax.ops.segment_sum(gradient.losses, quartile, 4),
            "quartile_count": jax.ops.segment_sum(jnp.ones_like(gradient.losses), quartile, 4),
        }
        return TrainState(state.step + 1, params, ema_params, opt_state, timestep_state), metrics

    return train_step


def make_train_call(experiment: Experiment, mesh: Mesh) -> Any:
    """Several steps in one dispatch: (state, batches [k, B, ...]) -> (state, metrics), compiled.

    The state is donated: the caller's copy is gone afterwards.
    """
    train_step = make_train_step(experiment, mesh)

    def train_call(state: TrainState, batches: dict[str, Any]) -> tuple[TrainState, Any]:
        state, metrics = jax.lax.scan(train_step, state, batches)
        return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh, axis=1)
    return devices.jit(
        train_call,
        precision=experiment.config.precision,
        in_shardings=(everywhere, by_example),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def check_cadence(experiment: Experiment, mesh: Mesh) -> None:
    """Refuses numbers of steps that do not fit each other.

    Raises:
        ValueError: naming the config field and what it must be.
    """
    train = experiment.config.train
    devices.check_divisible(train.batch_size, "train.batch_size", mesh)
    for name in ("num_steps", "log_every", "checkpoint_every", "preview_every", "validate_every"):
        if train[name] % train.steps_per_call:
            raise ValueError(
                f"config.train.{name} = {train[name]} must be a multiple of "
                f"config.train.steps_per_call = {train.steps_per_call}."
            )


def train(experiment: Experiment, workdir: Path) -> Outcome:
    """Trains from the latest checkpoint, or from the start, to config.train.num_steps.

    Finished and diverged trainings are recorded in the section "train" of results.json; one that
    was stopped by a signal has saved a checkpoint first. Nothing is saved before the losses that
    led to it and the state itself were found in order, so that every checkpoint is sound; only the
    last one, of a training that ends or is stopped, may have a loss above diverged_above. A
    training that diverged before is left alone.

    Raises:
        ValueError, FileNotFoundError: for a config, data set or working directory that cannot be.
        CheckpointError: if the latest checkpoint cannot be read.
    """
    config = experiment.config
    mesh = devices.make_mesh()
    check_cadence(experiment, mesh)
    watch = Watch(config.train)
    before = outcome.diverged_before(workdir)
    if before is not None:
        console.log(before)
        return Outcome.DIVERGED
    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh, axis=1)

    # Data: the batch of every step is known from (seed, step), so a resume is a new start.
    source = training_images(experiment)
    data_fingerprint = fingerprint(experiment.dataset.name, source)
    if config.loader.in_memory:
        source = load_in_memory(source, config.loader.num_threads)

    with Checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
        # State: restored where there is one.
        step = checkpoints.latest_step()
        if step is None:
            step = 0
            state = fresh_state(experiment, everywhere)
        else:
            state = restore(experiment, checkpoints, step, data_fingerprint, everywhere)
            console.log(f"resuming  step {step:,} of {config.train.num_steps:,} from {workdir}")
        if step >= config.train.num_steps:
            return Outcome.FINISHED
        if step % config.train.steps_per_call:
            raise ValueError(
                f"{workdir} stopped at step {step}, which is no multiple of "
                f"config.train.steps_per_call = {config.train.steps_per_call}. Continue with a "
                f"divisor of {step}, such as the one before."
            )
        meta = {
            "config": config_to_dict(config),
            "fingerprint": data_fingerprint,
            "image_shape": experiment.dataset.image_shape,
            "held_out": held_out(experiment),
            "weights": EMA,  # of whatever it began from, this training goes on averaging
        }

        def save(step: int, state: TrainState) -> None:
            checkpoints.save(
                step, state._replace(ema_params=()), state.ema_params, meta | {"step": step}
            )

        batches = loader.batches(
            source,
            seed=config.seed,
            batch_size=config.train.batch_size,
            start_step=step,
            steps_per_call=config.train.steps_per_call,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.loader.num_workers,
            num_threads=config.loader.num_threads,
            prefetch=config.loader.prefetch,
        )
        batch = devices.put(next(batches), by_example)
        begin = time.perf_counter()
        train_call = make_train_call(experiment, mesh).lower(state, batch).compile()
        finite_fn = devices.jit(
            outcome.finite_fields, precision="highest", out_shardings=everywhere
        )
        check = finite_fn.lower(state).compile()
        console.log(f"compiled  the training step in {time.perf_counter() - begin:.0f} s")
        preview = make_preview(experiment, mesh)
        validation = Validation(experiment, workdir, mesh) if config.train.validate_every else None
        if devices.is_main_process():
            write_config(workdir, config)

        # The loop: dispatch a call, fetch its successor's data while it runs, then wait for the
        # call before it, so that the device always has work and the host never runs far ahead.
        # A window of metrics is read when the next call is already running, but for one that ends
        # where something is saved, which has to be in order first.
        images_per_call = config.train.batch_size * config.train.steps_per_call
        meter, window, previous = training_log.Meter(), None, None
        seen: dict[str, float] = {}
        divergence: Divergence | None = None
        with (
            training_log.TrainingLog(workdir, step, config.train.num_steps) as log,
            stop_requested() as stop,
        ):
            watch.remember(workdir / "metrics.jsonl")
            while True:
                state, metrics = train_call(state, batch)
                step += config.train.steps_per_call
                meter.add(metrics, images_per_call)
                finished = step == config.train.num_steps
                if not finished:
                    with meter.waiting_for_data():
                        host_batch = next(batches)
                    batch = devices.put(host_batch, by_example)
                if previous is not None:
                    jax.block_until_ready(previous)
                previous = metrics
                if window is not None:
                    seen = log.write(window, meter.lap())
                    divergence = watch.look(window.step, seen)
                    window = None
                    if divergence is not None:
                        break
                log.advance(step)

                stopping = bool(stop) or checkpoints.reached_preemption(
                    step // config.train.steps_per_call
                )
                previewing = config.train.preview_every and step % config.train.preview_every == 0
                saving = step % config.train.checkpoint_every == 0 or finished or stopping
                validating = validation and step % config.train.validate_every == 0
                if step % config.train.log_every == 0 or saving or validating:
                    window = meter.close(step)
                if previewing or saving or validating:
                    jax.block_until_ready(metrics)  # or its time would count as the pause's
                if window is not None and (saving or validating):
                    seen = log.write(window, meter.lap())
                    divergence = watch.look(step, seen)
                    divergence = divergence or watch.check(step, jax.device_get(check(state)))
                    window = None
                    if divergence is not None:
                        break
                if watch.in_doubt and not (finished or stopping):
                    saving = validating = False  # it may yet turn out to have diverged
                if previewing:
                    with meter.paused():
                        preview(state.ema_params, workdir / "previews" / f"{step:08d}.png")
                if validation is not None and validating:
                    with meter.paused():
                        kept = state._replace(ema_params=())
                        facts = meta | {"step": step}
                        value = validation.run(step, kept, state.ema_params, facts)
                        log.scalar(step, f"validation_{validation.name}", value)
                if saving:
                    with meter.paused():
                        save(step, state)
                if finished or stopping:
                    break
        batches.close()
        if validation is not None:
            validation.close()
    if divergence is not None:
        record(workdir, Outcome.DIVERGED, config, **divergence._asdict())
        console.log(f"DIVERGED  at step {divergence.step:,}: {divergence.reason}")
        return Outcome.DIVERGED
    if finished:
        last = {"step": step} | seen
        record(workdir, Outcome.FINISHED, config, step=step, metrics=last)
    if stopping:
        console.log(f"stopped   at step {step:,}, which is saved; the same command continues")
    return Outcome.STOPPED if stopping else Outcome.FINISHED


def record(workdir: Path, outcome: Outcome, config: ConfigDict, **facts: Any) -> None:
    """Writes the section "train" of results.json."""
    if devices.is_main_process():
        write_results(workdir, "train", {"state": outcome.value} | facts, config)
