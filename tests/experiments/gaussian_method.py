"""One Gaussian per pixel: the cheapest generative model that the loop can train."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.methods.method import Method, at_once


def gaussian(config: ConfigDict, dataset: Any, encoder: Any, /) -> Method:
    """One Gaussian per pixel, fitted by its likelihood: a generative model without any chain."""

    def losses(params: Any, x_0: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        scale = params["log_scale"]
        square = jnp.square((x_0 - params["mean"]) * jnp.exp(-scale))
        details = {"square": square.mean((1, 2, 3))}
        details["scale"] = jnp.broadcast_to(scale.mean(), x_0.shape[:1])
        return 0.5 * details["square"] + details["scale"], details

    def draw(params, keys, labels):
        noise = jax.vmap(lambda key: jax.random.normal(key, encoder.shape))(keys)
        return params["mean"] + jnp.exp(params["log_scale"]) * noise

    return Method(
        init=lambda key: {name: jnp.zeros(encoder.shape) for name in ("mean", "log_scale")},
        memory=lambda: {"seen": jnp.zeros((), jnp.int32)},
        draw=lambda memory, x_0, labels, keys: x_0,
        losses=losses,
        remember=lambda memory, x_0, details: {"seen": memory["seen"] + len(x_0)},
        summary=lambda x_0, details: {
            name: (value.sum(), jnp.asarray(value.size, jnp.float32))
            for name, value in details.items()
        },
        sampling=at_once(draw),
        num_steps=1,
        num_classes=0,
        null_class=False,
        protocol={"sampler": {"name": "gaussian"}},
        description=("model     one Gaussian per pixel",),
    )
