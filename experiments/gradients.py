"""The gradient of a batch and how it is clipped; the two cannot be told apart.

The original clipped on every core before averaging over cores, so that the clipped gradient depends
on how the batch is cut into groups. Here the groups are part of the config, not of the machine: a
run gives the same gradient on one device and on eight.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

Objective = Callable[..., tuple[jax.Array, jax.Array]]  # (params, examples, key) -> mean, f32[B]


class Gradient(NamedTuple):
    """The clipped gradient of one batch."""

    value: Any  # pytree like the parameters
    losses: jax.Array  # f32[B], loss of every example
    norm: jax.Array  # f32[], global norm before clipping (mean over the groups)


GradientFn = Callable[[Mesh, Objective, Any, Any, jax.Array], Gradient]


def _clip(grads: Any, max_norm: float) -> tuple[Any, jax.Array]:
    norm = optax.tree.norm(grads)
    scale = max_norm / jnp.maximum(norm, max_norm)
    return jax.tree.map(lambda g: g * scale, grads), norm


def clip_global(max_norm: float = 1.0) -> GradientFn:
    """Clips the gradient of the whole batch to `max_norm`."""

    def gradients(mesh: Mesh, objective: Objective, params: Any, examples: Any, key: Any) -> Any:
        (_, losses), grads = jax.value_and_grad(objective, has_aux=True)(params, examples, key)
        grads, norm = _clip(grads, max_norm)
        return Gradient(grads, losses, norm)

    return gradients


def clip_per_core(max_norm: float = 1.0, images_per_core: int = 16) -> GradientFn:
    """Clips the gradient of every `images_per_core` examples, then averages (the original's way).

    Raises (when traced):
        ValueError: if the batch cannot be cut into such groups, equally many on every device.
    """

    def gradients(mesh: Mesh, objective: Objective, params: Any, examples: Any, key: Any) -> Any:
        batch_size = jax.tree.leaves(examples)[0].shape[0]
        groups = batch_size // images_per_core
        devices = mesh.size
        if batch_size % images_per_core or groups % devices:
            raise ValueError(
                f"clip per_core cuts a batch of {batch_size} into groups of images_per_core = "
                f"{images_per_core}, the same number on each of {devices} device(s). Choose a "
                f"batch size that is a multiple of {images_per_core * devices}, other groups, or "
                "config.clip = dict(name='global')."
            )

        def local(params: Any, examples: Any, key: jax.Array) -> Any:
            params = jax.lax.pcast(params, "data", to="varying")
            here = groups // devices
            cut = jax.tree.map(lambda x: x.reshape(here, images_per_core, *x.shape[1:]), examples)
            indices = jax.lax.axis_index("data") * here + jnp.arange(here)

            def one(total: Any, group: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
                index, examples = group
                (_, losses), grads = jax.value_and_grad(objective, has_aux=True)(
                    params, examples, jax.random.fold_in(key, index)
                )
                grads, norm = _clip(grads, max_norm)
                return jax.tree.map(jnp.add, total, grads), (losses, norm)

            zeros = jax.tree.map(jnp.zeros_like, params)
            total, (losses, norms) = jax.lax.scan(one, zeros, (indices, cut))
            mean = jax.tree.map(lambda g: jax.lax.psum(g, "data") / groups, total)
            return mean, losses.reshape(-1), jax.lax.psum(jnp.sum(norms), "data") / groups

        data, all_ = PartitionSpec("data"), PartitionSpec()
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(all_, data, all_), out_specs=(all_, data, all_)
        )
        return Gradient(*mapped(params, examples, key))

    return gradients


CLIPS = MappingProxyType({"global": clip_global, "per_core": clip_per_core})
