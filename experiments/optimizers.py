"""Optimizers, with the original's Adam as it was, and the average of what they find."""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


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
    rate = (
        optax.linear_schedule(0.0, learning_rate, warmup_steps) if warmup_steps else learning_rate
    )
    scale = scale_by_adam_hat(b1, b2, eps) if epsilon_hat else optax.scale_by_adam(b1, b2, eps)
    return optax.chain(scale, optax.scale_by_learning_rate(rate))


def update_ema(ema_params: Any, params: Any, decay: float) -> Any:
    """ema + (1 - decay) (params - ema): the exponential moving average after one more step.

    In this form its weights sum to 1 in float32 as well. Those of decay * ema + (1 - decay) *
    params do not: at a decay of 0.9999 that average settles 1.7e-4 below what it averages.
    """
    return jax.tree.map(lambda ema, p: ema + (1.0 - decay) * (p - ema), ema_params, params)


OPTIMIZERS = MappingProxyType({"adam": adam})
