"""What a run will need, told before it: memory, work and time on these devices."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import console, devices
from experiments.data.dataset import gather
from experiments.drawing import parts_of, requested
from experiments.experiment import Experiment
from experiments.methods.method import count_parameters
from experiments.metrics.bound import make_terms_fn
from experiments.optimizers import clip_global, describe_average
from experiments.state import TrainState, fresh_state, init_state, state_layout, training_images
from experiments.train import check_cadence, make_train_call, make_train_step
from experiments.workdir.checkpoint import NAME, Checkpoints

SECONDS = 5.0  # that a measurement takes at least
CALLS = 3  # that it takes at least
MIB, GIB = 2**20, 2**30


def show_bytes(count: float) -> str:
    """1,234 MiB, or 12.3 GiB from ten of them."""
    return f"{count / GIB:,.1f} GiB" if count >= 10 * GIB else f"{count / MIB:,.1f} MiB"


def show_time(seconds: float) -> str:
    """About how long, in the unit that fits."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def show_flops(count: float) -> str:
    """12.3 GFLOP, or TFLOP from a thousand of them."""
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:,.2f} GFLOP"


def bytes_on_a_device(tree: Any, layout: Any) -> int:
    """Bytes of arrays, or of their shapes, on each device when they lie as `layout` says."""
    shards = jax.tree.map(
        lambda x, place: np.prod(place.shard_shape(x.shape), dtype=int) * x.dtype.itemsize,
        tree,
        layout,
    )
    return int(sum(jax.tree.leaves(shards)))


def example_batch(experiment: Experiment) -> tuple[dict[str, np.ndarray], bool]:
    """A batch of training, and whether it is of the data set, which may not be there yet."""
    config = experiment.config
    size = config.train.batch_size // jax.process_count()
    try:
        source = training_images(experiment)
        batch = gather(source, [i % len(source) for i in range(size)])
        found = True
    except FileNotFoundError:
        shape = (size, *experiment.dataset.image_shape)
        noise = np.random.default_rng(0).integers(0, experiment.dataset.num_levels, shape)
        batch = {"image": noise.astype(np.uint8), "label": np.zeros(size, np.int32)}
        found = False
    if config.loader.in_memory and not config.train.flip:  # encoded once, before training
        keep = devices.jit(experiment.encoder.keep, precision=devices.REPORTED)
        batch = batch | {"image": np.asarray(keep(batch["image"]))}
    return batch, found


def step_flops(experiment: Experiment, state: Any, batch: Any) -> float:
    """Floating-point operations of one update, as XLA counts them: of the program as written.

    A product is two, and what a loop does is counted once, so that parts of a batch are taken
    together here, as they would be on one device.
    """
    config = experiment.config.copy_and_resolve_references()
    config.train.accumulate_steps = 1
    plain = experiment._replace(config=config, gradients=clip_global())
    step = make_train_step(plain, devices.make_mesh(jax.local_devices()[:1]))
    lowered = devices.jit(step, precision=config.precision).lower(state, batch)
    analysis = lowered.cost_analysis()
    return float((analysis or {}).get("flops", float("nan")))


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes: the median of at least CALLS, after one that does not count."""
    jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < CALLS or sum(taken) < SECONDS:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def _say(name: str, text: str) -> None:
    console.log(f"{name:<9} {text}")


def _fits(needed: int, free: int | None) -> str:
    """What the plan says of memory that has to be free."""
    if free is None:
        return "nobody says how much is free"
    return f"{show_bytes(free)} are free: {'it fits' if needed <= free else 'it does NOT fit'}"


def plan_training(experiment: Experiment, mesh: Mesh, done: int) -> None:
    """Says what training needs, and how long it takes from `done` steps on."""
    config = experiment.config.train
    abstract = jax.eval_shape(lambda: init_state(experiment))
    layout = state_layout(experiment, mesh)
    here = {
        name: bytes_on_a_device(getattr(abstract, field), getattr(layout, field))
        for name, field in (
            *(("parameters", "params"), ("optimizer", "opt_state"), ("average", "ema_params")),
            ("memory of the method", "memory"),
        )
    }
    for line in describe_average(experiment.config, config.num_steps):
        console.log(line)
    _say("network", f"{count_parameters(experiment.method.init):,} parameters")
    parts = ", ".join(f"{name} {show_bytes(count)}" for name, count in here.items() if count)
    of_state = bytes_on_a_device(abstract, layout)
    _say("state", f"{show_bytes(of_state)} on each device: {parts}")

    batch, found = example_batch(experiment)
    if not found:
        _say("data", "the data set is not there yet: random images stand for it")
    flops = step_flops(experiment, abstract, batch)
    _say("work", f"{show_flops(flops)} a step, {show_flops(flops / config.batch_size)} an image")
    batches = {name: x[None].repeat(config.steps_per_call, 0) for name, x in batch.items()}
    placed = devices.put(batches, devices.sharded(mesh, axis=1))
    free = devices.free_bytes()
    place = devices.over_fsdp(mesh)
    lowered = make_train_call(experiment, mesh).lower(
        devices.abstract_like(lambda: init_state(experiment), place), placed
    )
    _say("compiling", f"the training step, about {devices.compile_seconds(lowered):.0f} s")
    compiled = lowered.compile()
    extra = devices.needed_bytes(compiled)
    _say("memory", f"{show_bytes(extra)} more while a step runs; {_fits(of_state + extra, free)}")
    if not devices.all_agree(free is None or of_state + extra <= free):
        _say(
            "advice",
            "a smaller config.train.batch_size, config.train.accumulate_steps = 2 or more, "
            "config.mesh.fsdp over several devices, or config.model.dtype = 'bfloat16'",
        )
        _say("speed", "not measured, for it does not fit")
        return
    state: list[TrainState] = [fresh_state(experiment, mesh)]

    def call() -> Any:
        state[0], metrics = compiled(state[0], placed)
        return metrics

    seconds = seconds_of(call) / config.steps_per_call
    _say(
        "speed",
        f"{config.batch_size / seconds:,.1f} images/s, {seconds:,.3f} s a step, "
        f"{show_flops(flops / seconds)}/s; measured without reading data",
    )
    left = max(config.num_steps - done, 0)
    _say("training", f"{show_time(left * seconds)} for {left:,} steps of {config.batch_size}")


def plan_checkpoints(experiment: Experiment, workdir: Path | None) -> None:
    """Says what checkpoints take on disk."""
    config = experiment.config.train
    abstract = jax.eval_shape(lambda: init_state(experiment))
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    kept = config.keep_checkpoints + 1 + (1 if config.validate_every else 0)
    if config.keep_every:
        kept += config.num_steps // config.keep_every
    text = f"{show_bytes(each)} a checkpoint, at most {kept} at once: {show_bytes(kept * each)}"
    if workdir is not None:
        there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.is_dir())
        text += f"; {show_bytes(shutil.disk_usage(there).free)} are left in {there}"
    _say("disk", text)


def plan_sampling(experiment: Experiment, mesh: Mesh) -> None:
    """Says what drawing samples needs, and how long it takes."""
    config = experiment.config.sample
    size = devices.round_up(config.batch_size, mesh)
    sampling = experiment.method.sampling(config.num_steps, ())
    params = devices.abstract_like(
        lambda: experiment.method.init(jax.random.key(0)), devices.replicated(mesh)
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    labels = requested(experiment)
    wanted: Any = jax.ShapeDtypeStruct((size, *labels.shape[1:]), labels.dtype)
    state = jax.eval_shape(sampling.begin, params, keys, wanted)
    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh)
    steps: Any = parts_of(sampling.num_steps)[-1][-2:]
    compiled = (
        devices.jit(
            sampling.advance,
            precision=experiment.config.precision,
            in_shardings=(everywhere, by_example, by_example, by_example, everywhere),
            out_shardings=by_example,
        )
        .lower(params, keys, wanted, state, steps)
        .compile()
    )
    needed, free = devices.needed_bytes(compiled), devices.free_bytes()
    of_params = bytes_on_a_device(params, jax.tree.map(lambda x: x.sharding, params))
    _say(
        "sampling",
        f"{size} at a time: {show_bytes(of_params)} of parameters and {show_bytes(needed)} more; "
        f"{_fits(of_params + needed, free)}",
    )
    if not devices.all_agree(free is None or of_params + needed <= free):
        _say("advice", "it is drawn in halves then; or set a smaller config.sample.batch_size")
        return

    def draw_inputs(seed: jax.Array) -> Any:
        params = experiment.method.init(seed)
        keys = jax.random.split(seed, size)
        wanted = jax.numpy.asarray(labels[np.arange(size) % len(labels)])
        return params, keys, wanted, sampling.begin(params, keys, wanted)

    drawn = devices.jit(
        draw_inputs,
        precision=experiment.config.precision,
        out_shardings=(everywhere, by_example, by_example, by_example),
    )
    inputs = drawn(jax.random.key(0))
    seconds = seconds_of(lambda: compiled(*inputs, steps)) / len(steps)
    whole = seconds * sampling.num_steps
    _say(
        "speed",
        f"{seconds:,.3f} s a step, {show_time(whole)} for {size} samples of {sampling.num_steps} "
        f"steps, {show_time(whole * -(-50_000 // size))} for 50,000",
    )


def plan_evaluation(experiment: Experiment, mesh: Mesh) -> None:
    """Says what the terms of the bound need, where the method has them."""
    chain = experiment.method.chain
    if chain is None:
        return
    config = experiment.config.evaluate
    size = devices.round_up(config.batch_size, mesh)
    params = devices.abstract_like(
        lambda: experiment.method.init(jax.random.key(0)), devices.replicated(mesh)
    )
    labels = requested(experiment)
    batch = {
        "image": jax.ShapeDtypeStruct((size, *experiment.dataset.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((size, *labels.shape[1:]), labels.dtype),
    }
    indices = jax.ShapeDtypeStruct((size,), np.int32)
    t = jax.ShapeDtypeStruct((config.timesteps_at_once, size), np.int32)
    terms: Any = make_terms_fn(experiment, mesh, chain.denoise)
    compiled = terms.lower(params, batch, indices, t, np.int32(0)).compile()
    needed = devices.needed_bytes(compiled)
    of_params = bytes_on_a_device(params, jax.tree.map(lambda x: x.sharding, params))
    _say(
        "bound",
        f"{size} images, {config.timesteps_at_once} timestep(s) at once: {show_bytes(of_params)} "
        f"of parameters and {show_bytes(needed)} more; "
        f"{_fits(of_params + needed, devices.free_bytes())}",
    )


def plan(experiment: Experiment, workdir: Path | None) -> None:
    """Says all of it, a line when it is known.

    Args:
        workdir: of the run; a checkpoint in it counts as done.

    Raises:
        ValueError: for a config that training would refuse.
    """
    mesh = devices.make_mesh(**experiment.config.mesh)
    check_cadence(experiment.config.train, mesh)
    done = 0
    if workdir is not None and (workdir / NAME).exists():
        with Checkpoints(workdir) as checkpoints:
            done = checkpoints.latest_step() or 0
    if done:
        _say("done", f"{done:,} of {experiment.config.train.num_steps:,} steps, in {workdir}")
    plan_checkpoints(experiment, workdir)
    plan_training(experiment, mesh, done)
    plan_sampling(experiment, mesh)
    plan_evaluation(experiment, mesh)
