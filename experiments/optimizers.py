"""Optimizers and gradient clipping, the original's as they were, and the average of parameters."""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, PartitionSpec
from ml_collections import ConfigDict

# (params, examples, key) -> (mean, details of every example [B, ...])
Objective = Callable[..., tuple[jax.Array, Any]]


class Gradient(NamedTuple):
    """The clipped gradient of one batch."""

    value: Any  # pytree like the parameters
    details: Any  # of the objective, every leaf [B, ...]
    norm: jax.Array  # f32[], global norm before clipping (mean over the groups)
    clipped_share: jax.Array  # f32[], share of the groups whose norm was above the limit


GradientFn = Callable[[Mesh, Objective, Any, Any, jax.Array], Gradient]


def _clip(grads: Any, max_norm: float) -> tuple[Any, jax.Array, jax.Array]:
    """The gradient scaled down to `max_norm` where its norm is above; its norm; whether it was."""
    norm = optax.tree.norm(grads)
    above = norm > max_norm
    scale = jnp.where(above, max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * scale, grads), norm, above.astype(jnp.float32)


def clip_global(max_norm: float = 1.0) -> GradientFn:
    """Clips the gradient of the whole batch to `max_norm`."""

    def gradients(mesh: Mesh, objective: Objective, params: Any, examples: Any, key: Any) -> Any:
        (_, details), grads = jax.value_and_grad(objective, has_aux=True)(params, examples, key)
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

    def gradients(mesh: Mesh, objective: Objective, params: Any, examples: Any, key: Any) -> Any:
        batch_size = jax.tree.leaves(examples)[0].shape[0]
        mesh = _cut_mesh(mesh, batch_size, num_cores)

        def local(params: Any, examples: Any, indices: jax.Array, key: jax.Array) -> Any:
            params = jax.lax.pcast(params, "group", to="varying")
            cut = jax.tree.map(
                lambda x: x.reshape(len(indices), batch_size // num_cores, *x.shape[1:]), examples
            )

            def one(total: Any, group: Any) -> tuple[Any, tuple[Any, ...]]:
                index, examples = group
                (_, details), grads = jax.value_and_grad(objective, has_aux=True)(
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


def _warm_up(learning_rate: float, warmup_steps: int) -> optax.ScalarOrSchedule:
    """learning_rate * min(step / warmup_steps, 1)."""
    if not warmup_steps:
        return learning_rate
    return optax.linear_schedule(0.0, learning_rate, warmup_steps)


def learning_rate(config: ConfigDict) -> Callable[[int], float]:
    """Updates done -> the rate of the next one, of the config's section `optimizer`."""
    rate, warmup_steps = config.learning_rate, config.warmup_steps
    return lambda step: rate * min(step / warmup_steps, 1.0) if warmup_steps else rate


def adam(
    learning_rate: float,
    warmup_steps: int = 5000,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    epsilon_hat: bool = True,
) -> optax.GradientTransformation:
    """Adam under a linear warm-up, learning_rate * min(step / warmup_steps, 1).

    The first update (step 0) therefore has rate 0, as in the original. `epsilon_hat` chooses the
    original's placement of eps; False is optax's.
    """
    scale = scale_by_adam_hat(b1, b2, eps) if epsilon_hat else optax.scale_by_adam(b1, b2, eps)
    rate = _warm_up(learning_rate, warmup_steps)
    return optax.chain(scale, optax.scale_by_learning_rate(rate))


def update_ema(ema_params: Any, params: Any, decay: float) -> Any:
    """ema + (1 - decay) (params - ema): the exponential moving average after one more step.

    In this form its weights sum to 1 in float32 as well. Those of decay * ema + (1 - decay) *
    params do not: at a decay of 0.9999 that average settles 1.7e-4 below what it averages.
    """
    return jax.tree.map(lambda ema, p: ema + (1.0 - decay) * (p - ema), ema_params, params)


def rmsprop(
    learning_rate: float,
    warmup_steps: int = 5000,
    decay: float = 0.9,
    momentum: float = 0.0,
    eps: float = 1e-10,
) -> optax.GradientTransformation:
    """RMSProp under the same warm-up, which DDPM App. B tried beside Adam.

    As TensorFlow 1 has it, with its defaults: v = decay v + (1 - decay) g^2 from v = 1, not 0;
    u = momentum u + rate g / sqrt(v + eps), with eps inside the root and the rate inside the
    momentum; the parameters lose u.
    """
    rate = _warm_up(learning_rate, warmup_steps)
    return optax.rmsprop(
        rate, decay=decay, eps=eps, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum or None
    )


OPTIMIZERS = MappingProxyType({"adam": adam, "rmsprop": rmsprop})
