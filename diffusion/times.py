"""Times of training: how t, or u of a path, is drawn.

Every entry of TIMES is (schedule, /, **options) -> Times.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.structs import Schedule, Times

PerExample = Float[Array, " b"]
T = Int[Array, " b"]


def uniform(chain: Schedule, /) -> Times:
    """t uniform on 0 .. T - 1 (DDPM Alg. 1)."""
    num_timesteps = chain.num_timesteps

    def sample(state: tuple[()], keys: Key[Array, " b"]) -> tuple[T, PerExample]:
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)
        return t, jnp.ones(t.shape)

    return Times(lambda: (), sample, lambda state, t, losses: state)


class LossHistory(NamedTuple):
    """The last losses seen at each timestep, as a ring buffer."""

    losses: Float[Array, "T history"]
    seen: Int[Array, " T"]  # how many there ever were


def whole_parts(
    p: Float[Array, " T"],
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, jax.Array]]]:
    """Probabilities as whole parts of a sum of about 2^31, from which to draw without rounding.

    A cumulative sum in float32 is off by some 6e-8, a quarter of what a rare timestep of a chain
    of T = 4000 has; integers add exactly.

    Returns:
        total: u32[], the number of parts.
        locate: u u32[B], each in [0, total) -> (t i32[B], the exact probability of each f32[B]).
    """
    parts = jnp.maximum((p * 2.0**31).astype(jnp.uint32), 1)
    cumulative = jnp.cumsum(parts, dtype=jnp.uint32)
    total = cumulative[-1]

    def locate(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.searchsorted(cumulative, u, side="right").astype(jnp.int32)
        return t, parts[t].astype(jnp.float32) / total.astype(jnp.float32)

    return total, locate


def loss_second_moment(chain: Schedule, /, history: int = 10, uniform_share: float = 1e-3) -> Times:
    """t drawn in proportion to sqrt(E[L_t^2]) over the last `history` losses (IDDPM Eq. 18).

    Uniform until every timestep has a full history; `uniform_share` of the draws stay uniform so
    that no timestep is forgotten. The weights 1 / (T p_t) keep the loss's mean.

    Raises:
        ValueError: unless history >= 1 and 0 < uniform_share <= 1.
    """
    if history < 1 or not 0.0 < uniform_share <= 1.0:
        raise ValueError(
            f"got history = {history} and uniform_share = {uniform_share}; "
            "history must be at least 1 and uniform_share in (0, 1]."
        )
    num_timesteps = chain.num_timesteps

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((num_timesteps, history)), jnp.zeros(num_timesteps, jnp.int32))

    def probabilities(state: LossHistory) -> jax.Array:
        root = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        share = root / jnp.maximum(jnp.sum(root), jnp.finfo(root.dtype).tiny)
        mixed = (1.0 - uniform_share) * share + uniform_share / num_timesteps
        full = jnp.all(state.seen >= history) & (jnp.sum(root) > 0.0)
        return jnp.where(full, mixed, 1.0 / num_timesteps)

    def sample(state: LossHistory, keys: Key[Array, " b"]) -> tuple[T, PerExample]:
        total, locate = whole_parts(probabilities(state))
        t, p = locate(jax.vmap(lambda key: jax.random.randint(key, (), 0, total, jnp.uint32))(keys))
        return t, 1.0 / (num_timesteps * p)

    def update(state: LossHistory, t: T, losses: PerExample) -> LossHistory:
        # Several examples may share a t: the k-th of them takes the k-th next slot, and of more
        # than `history` only the last ones are kept.
        same = t[:, None] == t[None, :]
        rank = jnp.sum(jnp.tril(same, -1), axis=1)
        kept = rank >= jnp.sum(same, axis=1) - history
        slot = jnp.where(kept, (state.seen[t] + rank) % history, history)
        losses = jax.lax.stop_gradient(losses)
        return LossHistory(
            state.losses.at[t, slot].set(losses, mode="drop"), state.seen.at[t].add(1)
        )

    return Times(init, sample, update)


TIMES = MappingProxyType({"uniform": uniform, "loss_second_moment": loss_second_moment})
