"""Guidance: a network that is asked twice, with its condition and without."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Apply = Callable[..., jax.Array]  # (params, x_t, model_t, **inputs) -> the network's output
Inputs = dict[str, jax.Array]


def classifier_free(
    apply: Apply,
    unconditional: Callable[[Inputs], Inputs],
    scale: float,
    interval: tuple[int, int] | None = None,
    *,
    channels: int,
) -> Apply:
    """The network whose output is unconditional + scale (conditional - unconditional).

    Ho and Salimans (2022), Eq. 6, whose w is scale - 1: scale 1 is the conditional network, 0 the
    unconditional one, and more than 1 extrapolates. What is predicted, eps, x_0, v or mu, is affine
    in x_0, so that all of them are guided alike. A learned variance is the conditional one's. As it
    is the same kind of function as `apply`, everything else takes it in its place.

    Args:
        apply: trained with its condition and, now and then, without.
        unconditional: inputs of the network -> the same without any condition.
        scale: of the guidance.
        interval: (first, last) of the network's timesteps at which it guides; elsewhere the network
            is asked once, with its condition (Kynkaanniemi et al. 2024). None is everywhere.
        channels: of what is predicted; the output's others belong to the variance.
    """
    if scale == 1.0:
        return apply

    def guided(params: Any, x_t: jax.Array, model_t: jax.Array, **inputs: Any) -> jax.Array:
        count = len(x_t)
        without = unconditional(inputs)
        both = {name: jnp.concatenate([inputs[name], without[name]]) for name in inputs}
        twice = jnp.concatenate([x_t, x_t]), jnp.concatenate([model_t, model_t])
        output = apply(params, *twice, **both)
        first, second = output[:count], output[count:]
        mean = second[..., :channels] + scale * (first - second)[..., :channels]
        return jnp.concatenate([mean, first[..., channels:]], axis=-1)

    def unguided(params: Any, x_t: jax.Array, model_t: jax.Array, **inputs: Any) -> jax.Array:
        return apply(params, x_t, model_t, **unconditional(inputs))

    inner = guided if scale else unguided
    if interval is None:
        return inner
    first, last = interval

    def within(params: Any, x_t: jax.Array, model_t: jax.Array, **inputs: Any) -> jax.Array:
        inside = (model_t >= first) & (model_t <= last)
        return jax.lax.cond(  # a batch walks together: all are inside, or none
            inside.all(),
            lambda: inner(params, x_t, model_t, **inputs),
            lambda: apply(params, x_t, model_t, **inputs),
        )

    return within
