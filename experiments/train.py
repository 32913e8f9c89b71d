"""Training (DDPM Algorithm 1 for any method): the step, a pure function, and the loop around."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import random
from experiments import console, devices, fine_tuning, images
from experiments.data import loader
from experiments.data.dataset import InMemory, load_in_memory, remarks_on
from experiments.experiment import Experiment
from experiments.optimizers import (
    accumulated,
    describe_average,
    ema_decay,
    learning_rate,
    update_ema,
)
from experiments.state import (
    FROM_NEWEST,
    Start,
    TrainState,
    facts,
    history,
    restore,
    save,
    state_layout,
    training_images,
)
from experiments.workdir import outcome, training_log
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import write_config
from experiments.workdir.outcome import Divergence, Outcome, Watch
from experiments.workdir.results import write_results


class Hook(NamedTuple):
    """Something that a training does now and then, with a state that was found in order.

    every: steps.
    call: (step, state) -> numbers and pictures, uint8[H, W, C], for the log, by name.
    finish: waits for what the calls left to be done in the background.
    """

    every: int
    call: Callable[[int, TrainState], dict[str, Any]]
    finish: Callable[[], None] = lambda: None


def draw_examples(experiment: Experiment, state: TrainState, batch: dict[str, Any]) -> Any:
    """What one step trains on: flips and all noise are functions of (seed, step, example)."""
    image, seed = batch["image"], experiment.config.seed
    indices = jnp.arange(image.shape[0])

    def keys(name: str) -> jax.Array:
        key = random.stream(seed, name)
        return random.per_index(jax.random.fold_in(key, state.step), indices)

    if experiment.config.train.flip:
        image = images.random_flip(keys("flip"), image)
    encoder = experiment.encoder
    kept = encoder.keep(image) if image.dtype == jnp.uint8 else image  # or done before training
    x_0 = encoder.draw(kept, keys("encoder"))
    return experiment.method.draw(state.memory, x_0, batch["label"], keys)


def make_train_step(
    experiment: Experiment, mesh: Mesh
) -> Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, Any]]]:
    """One step of training: (state, batch of uint8 images) -> (state, sums of metrics)."""
    config, method = experiment.config, experiment.method

    def objective(params: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        losses, details = method.losses(params, examples, key)
        return jnp.mean(losses), (losses, details)

    place = devices.over_fsdp(mesh)
    differentiated = accumulated(
        jax.value_and_grad(objective, has_aux=True), config.train.accumulate_steps
    )

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        examples = draw_examples(experiment, state, batch)
        dropout = jax.random.fold_in(random.stream(config.seed, "dropout"), state.step)
        whole = devices.constrained(state.params, lambda shape: devices.replicated(mesh))
        gradient = experiment.gradients(mesh, differentiated, whole, examples, dropout)
        value = devices.constrained(gradient.value, place)
        updates, opt_state = experiment.optimizer.update(value, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config.ema_decay, config.ema_warmup, state.step)
        ema_params = update_ema(state.ema_params, params, decay)
        losses, details = gradient.details
        memory = method.remember(state.memory, examples, details)
        metrics = {
            "steps": jnp.ones(()),
            "loss": jnp.mean(losses),
            "grad_norm": gradient.norm,
            "update_norm": optax.tree.norm(updates),
            "clipped_share": gradient.clipped_share,
            "summary": method.summary(examples, details),
        }
        return TrainState(state.step + 1, params, ema_params, opt_state, memory), metrics

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
    layout = state_layout(experiment, mesh)
    return devices.jit(
        train_call,
        precision=experiment.config.precision,
        in_shardings=(layout, by_example),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )


def examine(state: TrainState, schedule: optax.Schedule) -> dict[str, dict[str, jax.Array]]:
    """Whether each field is finite, and numbers for the log.

    These are the rate of the last update, the norm of the parameters and their distance from their
    average.
    """
    apart = jax.tree.map(jnp.subtract, state.ema_params, state.params)
    numbers = {
        "learning_rate": jnp.asarray(schedule(state.step - 1)),
        "param_norm": optax.tree.norm(state.params),
        "ema_distance": optax.tree.norm(apart),
    }
    return {"finite": outcome.finite_fields(state), "numbers": numbers}


def compiled_step(experiment: Experiment, mesh: Mesh, state: TrainState, batch: Any) -> Any:
    """`make_train_call` and `examine`, compiled before they run."""
    everywhere = devices.replicated(mesh)
    lowered = make_train_call(experiment, mesh).lower(state, batch)
    look = functools.partial(examine, schedule=learning_rate(experiment.config.optimizer))
    looking = devices.jit(look, precision="highest", out_shardings=everywhere)
    begin = time.perf_counter()
    console.doing("compiling the training step")
    about = devices.compile_seconds(lowered)
    console.log(f"compiling the training step: about {about:.0f} s, less where it is cached")
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(lowered.compile)
        examined = looking.lower(state).compile()
        compiled = compiling.result(), examined
    console.log(f"compiled  the training step in {time.perf_counter() - begin:.1f} s")
    return compiled


def check_cadence(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses numbers of steps that do not fit each other.

    Args:
        config: the section `train`.

    Raises:
        ValueError: naming the config field and what it must be.
    """
    devices.check_divisible(config.batch_size, "train.batch_size", mesh)
    cadences = ("num_steps", "log_every", "checkpoint_every", "preview_every", "validate_every")
    units = dict.fromkeys(cadences, "steps_per_call") | {"keep_every": "checkpoint_every"}
    for name, unit in units.items():
        if config[name] % config[unit]:
            raise ValueError(
                f"config.train.{name} = {config[name]} must be a multiple of "
                f"config.train.{unit} = {config[unit]}."
            )


def record(workdir: Path, ended: Outcome, config: ConfigDict, **what: Any) -> None:
    """Writes the section "train" of results.json."""
    if devices.is_main_process():
        write_results(workdir, "train", {"state": ended.value} | what, config)


def train(
    experiment: Experiment,
    workdir: Path,
    hooks: Sequence[Hook] = (),
    start: Start = FROM_NEWEST,
) -> Outcome:
    """Trains from the latest checkpoint, or from the start, to config.train.num_steps.

    Finished and diverged trainings are recorded in the section "train" of results.json; one that
    was stopped by a signal has saved a checkpoint first. No hook runs and nothing is saved before
    the losses that led to it and the state itself were found in order, so that every checkpoint is
    sound; only the last one, of a training that ends or is stopped, may have a loss above
    diverged_above. A training that diverged before is left alone, unless `start` says otherwise.

    Args:
        start: where one goes on that was begun before.

    Raises:
        ValueError, FileNotFoundError: for a config, data set or working directory that cannot be.
        CheckpointError: if the latest checkpoint cannot be read.
    """
    config = experiment.config
    num_steps, steps_per_call = config.train.num_steps, config.train.steps_per_call
    mesh = devices.make_mesh(**config.mesh)
    check_cadence(config.train, mesh)
    watch = Watch(config.train)
    before = outcome.diverged_before(workdir)
    if before is not None and not start.diverged:
        console.log(outcome.why_not_on(workdir, before))
        return Outcome.DIVERGED
    start = start._replace(diverged=before is not None)
    by_example = devices.sharded(mesh, axis=1)

    # Data: the batch of every step is known from (seed, step), so a resume is a new start.
    source = training_images(experiment)
    console.log_lines(remarks_on(source))
    groups = None
    if config.train.balance != "images":
        pictures = training_images(experiment, experiment.dataset.open)
        groups = loader.groups_of(config.train.balance, experiment.dataset, pictures)
    if config.loader.in_memory:
        source = load_in_memory(source, config.loader.num_threads)
    meta = facts(experiment, source)
    if isinstance(source, InMemory) and not config.train.flip:
        source = experiment.encoder.in_memory(source)
    console.log_lines(loader.describe_data(config.train, len(source), groups))

    with Checkpoints(
        workdir, config.train.keep_checkpoints, config.train.keep_every
    ) as checkpoints:
        # State: restored where there is one.
        if before is not None:
            checkpoints.set_aside(before["step"] - 1)
        if checkpoints.latest_step() is None and not isinstance(start.step, int):
            step, (state, began) = 0, fine_tuning.begin(experiment, start.ancestor, meta, mesh)
            meta |= began
            if began:  # which needs the other run no more
                save(checkpoints, step, state, meta)
        else:
            step, state = checkpoints.newest(
                lambda step: restore(experiment, checkpoints, step, meta, mesh, start), start.step
            )
            meta |= history(checkpoints.meta(step), meta, config, before)
            if step < num_steps:
                console.log(f"resuming  step {step:,} of {num_steps:,} from {workdir}")
        if step >= num_steps:
            console.log(
                f"trained   {step:,} steps before, and config.train.num_steps = {num_steps:,}: "
                "nothing to train. A larger number goes on from there; another --workdir begins "
                "anew."
            )
            return Outcome.FINISHED
        if step % steps_per_call:
            raise ValueError(
                f"{workdir} stopped at step {step}, which is no multiple of "
                f"config.train.steps_per_call = {steps_per_call}. Continue with a "
                f"divisor of {step}, such as the one before."
            )
        checkpoints.set_aside(step)
        converted = step > 0 and checkpoints.meta(step)["fingerprint"] is None
        for line in describe_average(config, num_steps - step * converted):
            console.log(line)
        batches = loader.batches(
            source,
            seed=config.seed,
            batch_size=config.train.batch_size,
            start_step=step,
            steps_per_call=steps_per_call,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.loader.num_workers,
            num_threads=config.loader.num_threads,
            prefetch=config.loader.prefetch,
            groups=groups,
        )

        def save_step(step: int, state: TrainState) -> dict[str, float]:
            save(checkpoints, step, state, meta)
            console.log(f"saving    step {step:,}: {checkpoints.folder / str(step)}")
            return {}

        def wait_for_saves() -> None:
            for hook in (*hooks, saving):
                hook.finish()

        # The loop: dispatch a call, fetch its successor's data while it runs, then wait for the
        # call before it, so that the device always has work and the host never runs far ahead.
        # A window of metrics is read when the next call is already running, but for one that ends
        # where a hook is due, before which it has to be in order.
        saving = Hook(config.train.checkpoint_every, save_step, checkpoints.wait)
        divergence: Divergence | None = None
        seen: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            stack.callback(batches.close)
            batch = devices.put(next(batches), by_example)
            train_call, look = compiled_step(experiment, mesh, state, batch)
            if devices.is_main_process():
                write_config(workdir, config)
            past: dict[str, Any] = {
                name: meta[name] for name in ("origin", "continued") if name in meta
            }
            if before is not None or (past and not step):
                record(workdir, Outcome.STOPPED, config, step=step, **past)
            if before is not None:
                console.log(outcome.describe_continuation(past, before))
            log = training_log.TrainingLog(workdir, step, config, len(source))
            stack.enter_context(log)
            stop = stack.enter_context(console.stop_requested(jax.process_count() == 1))
            stack.callback(wait_for_saves)
            watch.remember(workdir / "metrics.jsonl")
            meter, window, previous = training_log.Meter(), None, None
            while True:
                state, metrics = train_call(state, batch)
                step += steps_per_call
                meter.add(metrics, config.train.batch_size * steps_per_call)
                if step < num_steps:
                    with meter.waiting_for_data():
                        host_batch = next(batches)
                    batch = devices.put(host_batch, by_example)
                if previous is not None:
                    jax.block_until_ready(previous)
                previous = metrics
                if window is not None:
                    seen = log.write(window, meter.lap())
                    divergence = watch.check_window(window.step, seen)
                    window = None
                    if divergence is not None:
                        break
                log.advance(step)

                ending = bool(stop) or checkpoints.reached_preemption(step // steps_per_call)
                last = ending or step == num_steps
                due = [hook for hook in (*hooks, saving) if step % hook.every == 0]
                if last and saving not in due:
                    due.append(saving)
                if due:
                    jax.block_until_ready(metrics)  # or its time would count as the pause's
                    found = look(state)
                    seen = log.write(meter.close(step, found["numbers"]), meter.lap())
                    divergence = watch.check_window(step, seen)
                    finite = jax.device_get(found["finite"])
                    divergence = divergence or watch.check_state(step, finite)
                    if divergence is not None:
                        break
                    if last or not watch.in_doubt:  # it may yet turn out to have diverged
                        with meter.paused():
                            for hook in due:
                                log.show(step, hook.call(step, state))
                elif step % config.train.log_every == 0:
                    window = meter.close(step, look(state)["numbers"])
                if last:
                    break
    if divergence is not None:
        record(workdir, Outcome.DIVERGED, config, **divergence._asdict(), **past)
        console.log(f"DIVERGED  at step {divergence.step:,}: {divergence.reason}")
        return Outcome.DIVERGED
    if step == num_steps:
        seen = {"step": step} | seen
        record(workdir, Outcome.FINISHED, config, step=step, metrics=seen, **past)
    if ending or stop:
        console.log(f"stopped   at step {step:,}, which is saved; the same command continues")
        return Outcome.STOPPED
    return Outcome.FINISHED
