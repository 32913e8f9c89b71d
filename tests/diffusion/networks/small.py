"""Networks of any name, small enough for tests, and their functions, each compiled once."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A small value of every field that sets a size; what a network does not have, it is not given.
FIELDS = dict(
    **dict(channels=8, channel_multipliers=(1,), num_blocks=1, norm_groups=4, num_heads=2),
    **dict(attention_resolutions=(), cross_attention_resolutions=()),
    **dict(patch_size=4, hidden_size=8, depth=1),
    **dict(latent_channels=3, hidden_sizes=(16, 12), latent_size=5),
)


def small(network: Callable[..., Any], sizes: dict[str, Any], **fields: Any) -> Any:
    """An instance of an entry of NETWORKS or AUTOENCODERS.

    Args:
        network: the entry.
        sizes: in place of those in FIELDS, where the network has such a field.
        fields: given to it as they are.
    """
    known = inspect.signature(network).parameters
    return network(**{k: v for k, v in (FIELDS | sizes).items() if k in known}, **fields)


def shapes(network: Any, shape: tuple[int, ...] = (8, 8, 1)) -> Any:
    """Of the parameters for images of that shape."""
    x, t = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), x, t)


def filled(params: Any) -> Any:
    """Values of such shapes, none of which is zero: every path of a network shows in its output."""
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan = leaf.size / leaf.shape[-1] + leaf.shape[-1] if leaf.ndim > 1 else np.inf
        drawn = np.sqrt(0.01 + 2 / fan) * rng.normal(size=leaf.shape)
        return np.float32(drawn + (path[-1].key == "scale"))

    return jax.tree.map_with_path(draw, params)


@functools.cache
def shaken(network: Any) -> Any:
    """Parameters of a network for images of 8x8x1, none of which is zero."""
    return filled(shapes(network))


@functools.cache
def applied(network: Any) -> Callable[..., jax.Array]:
    """network.apply, compiled."""
    return jax.jit(network.apply, static_argnames="train")
