"""Randomness as a function of where it is used, so that nothing has to carry a key.

A draw is addressed by (seed, stream name, example or sample index, timestep or step). That makes a
resumed run exact, and makes sample i the same in any batch, on any number of devices.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32


def stream(seed: int | Int[Array, ""] | UInt32[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one use of randomness; streams of one seed are independent of each other."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def per_index(key: Key[Array, ""], indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key for each example or sample index, i32[B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def normal(
    keys: Key[Array, " b"], t: int | Int[Array, ""] | Int[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
    """f32[B, *shape] standard normal draws, row i a function of (keys[i], t[i]) alone."""
    t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), keys.shape)
    return jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), shape))(keys, t)
