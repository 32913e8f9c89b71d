"""Sampling by the probability-flow ODE with a solver that chooses its own steps."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.paths import row
from diffusion.probability_flow import BoundFlow
from diffusion.structs import Levels, Noise, Sampler, Step

X = Float[Array, "b *x"]
STOPS = 10  # by default


def flow(levels: Levels, /, tolerance: float = 1e-4, max_steps: int = 1000) -> Sampler:
    """The probability-flow ODE by Tsit5 with adaptive steps (Song section 4.3), by diffrax.

    Every example takes steps of its own, so that it does not depend on its batch; a batch takes as
    long as its hardest example. The levels are stops on the way, at which the estimate
    of x_0 can be looked at, and between which the solver is free. No estimate is clipped. The
    solve ends at the first level above clean data, and the sample is the estimate of x_0
    there.

    Args:
        levels: the stops, in the time of the flow.
        tolerance: relative and absolute, of a step; float32 gives no more than about 1e-6.
        max_steps: of the solver between two stops, refused ones included; an example that needs
            more becomes NaN.
    """
    stops = levels.time[1:, None]

    def step(model: BoundFlow, x_t: X, t: jax.Array, noise: Noise, memory: Any) -> Step:
        examples = jnp.arange(x_t.shape[0], dtype=jnp.int32)
        (u,), (below,) = row(stops, t, x_t), row(stops, jnp.maximum(t - 1, 0), x_t)
        x_0 = jax.vmap(model.estimate, (0, None, 0))(x_t, u, examples)

        def solved() -> tuple[jax.Array, jax.Array]:
            def one(x: jax.Array, example: jax.Array) -> tuple[jax.Array, jax.Array]:
                return _solve(model, x, u, below, example, tolerance, max_steps)

            return jax.vmap(one)(x_t, examples)

        x, evaluations = jax.lax.cond(t > 0, solved, lambda: (x_0, jnp.zeros_like(examples)))
        return Step(x, x_0, memory, 1 + evaluations)

    return Sampler(levels.num_steps, lambda x_T: (), step, order=5, continuous=True, adaptive=True)


def _solve(
    model: BoundFlow,
    x: Float[Array, "*x"],
    u: jax.Array,
    below: jax.Array,
    example: jax.Array,
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Array, "*x"], jax.Array]:
    """(x at `below`, evaluations) of one example from its x at u."""
    import diffrax  # half a second, of which those who sample otherwise have no use

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda u, x, _: model.velocity(x, jnp.asarray(u), example)),
        diffrax.Tsit5(),
        t0=u,
        t1=below,
        dt0=(below - u) / 8.0,
        y0=x,
        stepsize_controller=diffrax.PIDController(tolerance, tolerance),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None and solution.stats is not None
    success = solution.result == diffrax.RESULTS.successful
    # Six a step, the last of which is the next's first, and once at the start.
    evaluations = (6 * solution.stats["num_steps"] + 1).astype(jnp.int32)
    return jnp.where(success, solution.ys[-1], jnp.nan), evaluations
