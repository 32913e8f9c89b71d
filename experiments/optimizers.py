"""Optimizers, gradient clipping and accumulation, and the average of parameters."""

import inspect
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, PartitionSpec
from ml_collections import ConfigDict

NOTICED = 0.01  # share of the initial parameters in the average from which on that is told
# (params, examples, key) -> ((mean, details of every example [B, ...]), gradient of the mean)
Differentiated = Callable[[Any, Any, jax.Array], tuple[tuple[jax.Array, Any], Any]]


class Gradient(NamedTuple):
    """The clipped gradient of one batch."""

    value: Any  # pytree like the parameters
    details: Any  # of the objective, every leaf [B, ...]
    norm: jax.Array  # f32[], global norm before clipping (mean over the groups)
    clipped_share: jax.Array  # f32[], share of the groups whose norm was above the limit


GradientFn = Callable[[Mesh, Differentiated, Any, Any, jax.Array], Gradient]


def accumulated(differentiated: Differentiated, num_parts: int) -> Differentiated:
    """The same mean and gradient, of `num_parts` equal parts of the batch one after the other.

    Only the activations of one part need memory. Part i has the examples i, i + num_parts, ..., so
    that a batch which is spread over devices stays where it is, and a key of its own; for one part
    it is `differentiated` itself.

    When it is traced, it refuses a batch that cannot be cut so.
    """
    if num_parts == 1:
        return differentiated

    def whole(params: Any, examples: Any, key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
        size = jax.tree.leaves(examples)[0].shape[0]
        if size % num_parts:
            raise ValueError(
                f"config.train.accumulate_steps = {num_parts} does not divide the {size} examples "
                "whose gradient is computed at once: config.train.batch_size, or with clip "
                "per_core a group of them, batch_size / num_cores. Choose a divisor."
            )

        def cut(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(size // num_parts, num_parts, *x.shape[1:]), 0, 1)

        def joined(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:])

        def one(total: Any, part: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            index, examples = part
            found, grads = differentiated(params, examples, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, grads), found

        parts = jnp.arange(num_parts), jax.tree.map(cut, examples)
        zeros = jax.tree.map(jnp.zeros_like, params)
        total, (means, details) = jax.lax.scan(one, zeros, parts)
        grads = jax.tree.map(lambda x: x / num_parts, total)
        return (jnp.mean(means), jax.tree.map(joined, details)), grads

    return whole


def _clip(grads: Any, max_norm: float) -> tuple[Any, jax.Array, jax.Array]:
    """The gradient scaled down to `max_norm` where its norm is above; its norm; whether it was."""
    norm = optax.tree.norm(grads)
    above = norm > max_norm
    scale = jnp.where(above, max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * scale, grads), norm, above.astype(jnp.float32)


def clip_global(max_norm: float = 1.0) -> GradientFn:
    """Clips the gradient of the whole batch to `max_norm`."""

    def gradients(
        mesh: Mesh, differentiated: Differentiated, params: Any, examples: Any, key: Any
    ) -> Gradient:
        (_, details), grads = differentiated(params, examples, key)
        grads, norm, clipped = _clip(grads, max_norm)
        return Gradient(grads, details, norm, clipped)

    return gradients


def clip_none() -> GradientFn:
    """The gradient of the whole batch as it is."""
    return clip_global(math.inf)


def _cut_mesh(mesh: Mesh, batch_size: int, num_cores: int) -> Mesh:
    """The same devices in rows: "group", which have groups of their own, and "within" a group.

    Raises:
        ValueError: if the batch cannot be cut into the groups, or the devices do not fit them.
    """
    if batch_size % num_cores:
        raise ValueError(
            f"clip per_core cuts a batch of {batch_size} into num_cores = {num_cores} equal "
            f"groups. Choose a config.train.batch_size that is a multiple of {num_cores}, another "
            "config.clip.num_cores, or config.clip = dict(name='global')."
        )
    devices = mesh.size
    if num_cores % devices and devices % num_cores:
        raise ValueError(
            f"clip per_core has num_cores = {num_cores} groups for {devices} devices: one number "
            "must divide the other. Use another number of devices, set config.clip.num_cores to a "
            f"multiple or a divisor of {devices}, or config.clip = dict(name='global')."
        )
    rows = mesh.devices.reshape(min(devices, num_cores), -1)
    return Mesh(rows, ("group", "within"), axis_types=(AxisType.Auto, AxisType.Auto))


def clip_per_core(max_norm: float = 1.0, num_cores: int = 8) -> GradientFn:
    """Clips the gradient of every one of `num_cores` equal parts of the batch, then averages.

    The original's way, on a TPU v3-8. A device has several parts, or several devices share one:
    then they compute its gradient together, as if they were one.

    When it is traced, it refuses a batch or devices that cannot be cut so.
    """

    def gradients(
        mesh: Mesh, differentiated: Differentiated, params: Any, examples: Any, key: Any
    ) -> Gradient:
        batch_size = jax.tree.leaves(examples)[0].shape[0]
        mesh = _cut_mesh(mesh, batch_size, num_cores)

        def local(params: Any, examples: Any, indices: jax.Array, key: jax.Array) -> Any:
            params = jax.lax.pcast(params, "group", to="varying")
            cut = jax.tree.map(
                lambda x: x.reshape(len(indices), batch_size // num_cores, *x.shape[1:]), examples
            )

            def one(total: Any, group: Any) -> tuple[Any, tuple[Any, ...]]:
                index, examples = group
                (_, details), grads = differentiated(
                    params, examples, jax.random.fold_in(key, index)
                )
                grads, norm, clipped = _clip(grads, max_norm)
                return jax.tree.map(jnp.add, total, grads), (details, norm, clipped)

            def mean(x: jax.Array) -> jax.Array:
                return jax.lax.psum(x, "group") / num_cores

            zeros = jax.tree.map(jnp.zeros_like, params)
            total, (details, norms, clipped) = jax.lax.scan(one, zeros, (indices, cut))
            value = jax.tree.map(mean, total)
            details = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), details)
            return value, details, mean(jnp.sum(norms)), mean(jnp.sum(clipped))

        by_row, all_ = PartitionSpec("group"), PartitionSpec()
        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(all_, by_row, by_row, all_),
            out_specs=(all_, by_row, all_, all_),
            axis_names={"group"},
        )
        return Gradient(*mapped(params, examples, jnp.arange(num_cores), key))

    return gradients


CLIPS = MappingProxyType({"global": clip_global, "per_core": clip_per_core, "none": clip_none})


class AdamHatState(NamedTuple):
    """Number of updates and the two moments."""

    step: jax.Array
    mu: Any
    nu: Any


def scale_by_adam_hat(b1: float, b2: float, eps_hat: float) -> optax.GradientTransformation:
    """Adam with "epsilon-hat": sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps_hat).

    This is the form before Algorithm 1 of Kingma and Ba (2015, section 2), which TensorFlow 1
    computes; optax adds epsilon after the bias correction of v instead, which makes the first
    steps smaller where gradients are tiny.
    """

    def init(params: Any) -> AdamHatState:
        zeros = optax.tree.zeros_like(params)
        return AdamHatState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: Any, state: AdamHatState, params: Any = None) -> tuple[Any, AdamHatState]:
        step = state.step + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        t = step.astype(jnp.float32)
        rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps_hat), mu, nu)
        return updates, AdamHatState(step, mu, nu)

    return optax.GradientTransformation(init, update)


def rate_schedule(
    learning_rate: float,
    warmup_steps: int = 0,
    cosine_steps: int = 0,
    final_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Updates done -> the rate of the next one.

    It rises from 0 over warmup_steps, learning_rate * step / warmup_steps, and then stays; or, with
    cosine_steps, falls from there along half a cosine (Loshchilov and Hutter 2017, Eq. 5, without
    restarts), reaches final_learning_rate after cosine_steps updates in all, and stays.

    Raises:
        ValueError: if the cosine ends before the warm-up does, or there is an end and no way to it.
    """
    if cosine_steps and cosine_steps <= warmup_steps:
        raise ValueError(
            f"config.optimizer.cosine_steps = {cosine_steps} must be above warmup_steps = "
            f"{warmup_steps}, for it counts from the first update; config.train.num_steps is "
            "usual. 0 keeps the rate after the warm-up."
        )
    if final_learning_rate and not cosine_steps:
        raise ValueError(
            f"config.optimizer.final_learning_rate = {final_learning_rate} is never reached while "
            "cosine_steps = 0 keeps the rate after the warm-up. Set cosine_steps, to "
            "config.train.num_steps for instance."
        )
    after = optax.constant_schedule(learning_rate)
    if cosine_steps:
        end = final_learning_rate / learning_rate
        after = optax.cosine_decay_schedule(learning_rate, cosine_steps - warmup_steps, end)
    if not warmup_steps:
        return after
    warm_up = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warm_up, after], [warmup_steps]) if cosine_steps else warm_up


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """`rate_schedule` of the config's section `optimizer`, with that optimizer's defaults."""
    told = inspect.signature(OPTIMIZERS[config.name]).parameters
    names = ("learning_rate", "warmup_steps", "cosine_steps", "final_learning_rate")
    return rate_schedule(**{name: config.get(name, told[name].default) for name in names})


def adam(
    learning_rate: float,
    warmup_steps: int = 5000,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    epsilon_hat: bool = True,
    weight_decay: float = 0.0,
    cosine_steps: int = 0,
    final_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """Adam under `rate_schedule`, whose warm-up gives the first update rate 0, as the original's.

    Args:
        learning_rate, warmup_steps, cosine_steps, final_learning_rate: of `rate_schedule`.
        b1, b2, eps: of the moments.
        epsilon_hat: the original's placement of eps; False is optax's.
        weight_decay: AdamW's (Loshchilov and Hutter 2019, Algorithm 2): an update also takes
            rate * weight_decay of every parameter away, whatever the gradient's moments are.
    """
    scale = scale_by_adam_hat(b1, b2, eps) if epsilon_hat else optax.scale_by_adam(b1, b2, eps)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    rate = rate_schedule(learning_rate, warmup_steps, cosine_steps, final_learning_rate)
    return optax.chain(scale, *decay, optax.scale_by_learning_rate(rate))


def ema_decay(decay: float, warmup: float, step: jax.Array) -> float | jax.Array:
    """The decay of the average in the update that follows `step` updates, i32[].

    Args:
        decay: at last.
        warmup: 0 for `decay` from the start; a power p > 0 for min(decay, 1 - (1 + step)^-p), which
            forgets the initial parameters at once. With p = 1 the average is the mean of all
            parameters until decay is reached.
    """
    if not warmup:
        return decay
    return jnp.minimum(decay, 1.0 - (1.0 + step.astype(jnp.float32)) ** -warmup)


def update_ema(ema_params: Any, params: Any, decay: float | jax.Array) -> Any:
    """ema + (1 - decay) (params - ema): the exponential moving average after one more step.

    In this form its weights sum to 1 in float32 as well. Those of decay * ema + (1 - decay) *
    params do not: at a decay of 0.9999 that average settles 1.7e-4 below what it averages.
    """
    return jax.tree.map(lambda ema, p: ema + (1.0 - decay) * (p - ema), ema_params, params)


def share_of_start(decay: float, warmup: float, updates: int) -> float:
    """The weight that the parameters before the first of so many updates have in the average.

    decay^updates; with a warm-up 0, for its first decay is 0.
    """
    return 0.0 if warmup and updates else decay**updates


def describe_average(config: ConfigDict, updates: int) -> list[str]:
    """A warning where a good part of the average is what it began with, with what mends it."""
    share = share_of_start(config.ema_decay, config.ema_warmup, updates)
    if share < NOTICED:
        return []
    shorter = max(0.0, 1.0 - 10.0 / max(updates, 1))  # leaves exp(-10) or less
    return [
        f"WARNING   {share:.0%} of the average, which is sampled and evaluated, will be the "
        f"parameters before training: config.ema_decay = {config.ema_decay:g} over {updates:,} "
        f"steps. Set --config.ema_warmup=0.75, which forgets them, or a shorter memory, "
        f"--config.ema_decay={shorter:.4g}."
    ]


def rmsprop(
    learning_rate: float,
    warmup_steps: int = 5000,
    decay: float = 0.9,
    momentum: float = 0.0,
    eps: float = 1e-10,
    cosine_steps: int = 0,
    final_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """RMSProp under the same `rate_schedule`, which DDPM App. B tried beside Adam.

    As TensorFlow 1 has it, with its defaults: v = decay v + (1 - decay) g^2 from v = 1, not 0;
    u = momentum u + rate g / sqrt(v + eps), with eps inside the root and the rate inside the
    momentum; the parameters lose u.
    """
    rate = rate_schedule(learning_rate, warmup_steps, cosine_steps, final_learning_rate)
    return optax.rmsprop(
        rate, decay=decay, eps=eps, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum or None
    )


OPTIMIZERS: MappingProxyType[str, Any] = MappingProxyType({"adam": adam, "rmsprop": rmsprop})
