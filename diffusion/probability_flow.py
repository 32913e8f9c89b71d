"""The exact likelihood of a trained chain, by its probability-flow ODE.

"Song Eq. n" is Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", arXiv:2011.13456. The chain's 0-based timestep t is made continuous: u in [0, T - 1],
with the chain's own noise levels at the integers. The model is the density at u = 0, which is the
noise level of the first step (variance beta_0), not that of clean data; the prior, at u = T - 1, is
N(0, I). No estimate of x_0 is clipped: that would not be the flow of any density's score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion.forward import fit, q_marginal
from diffusion.likelihood import Decoder, bin_half_width, mean_per_example, to_bits_per_dim
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import at, through
from diffusion.reverse import ask, check_process, split_output
from diffusion.structs import Gaussian, Prediction, Process, Schedule

Scalar = Float[Array, ""]
Velocity = Callable[..., jax.Array]  # (params, x f32[B, ...], u f32[], **inputs) -> f32[B, ...]

# Of a solve: the noise's variance at its start grows by about its own size in it. Of a chain in
# timesteps; of a path its start.
FIRST_STEP = 1.0
SHORTEST_STEP = 1e-6  # of the first; a solve that asks for less has failed


class Flow(NamedTuple):
    """A probability-flow ODE dx/du = velocity(params, x, u, **inputs) on u in [start, end].

    velocity: (params, x f32[B, ...], u f32[] or f32[B], **inputs) -> f32[B, ...].
    estimate: of x_0, likewise; not clipped.
    start: where the density is the model's; 0 of a chain.
    end: where it is the prior's, N(0, deviation^2 I); T - 1 of a chain.
    """

    velocity: Velocity
    estimate: Velocity
    start: float
    end: float
    deviation: float


class BoundFlow(NamedTuple):
    """A flow of single examples, parameters and inputs bound.

    velocity, estimate: (x f32[...], u f32[], example i32[], its place in the batch) -> f32[...].
    """

    velocity: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    estimate: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def bind(flow: Flow, params: Any, inputs: dict[str, jax.Array]) -> BoundFlow:
    """`flow` for these parameters and inputs [B, ...] of the network."""

    def bound(field: Velocity) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        def of_one(x: jax.Array, u: jax.Array, example: jax.Array) -> jax.Array:
            own = {name: value[example][None] for name, value in inputs.items()}
            return field(params, x[None], u, **own)[0]

        return of_one

    return BoundFlow(bound(flow.velocity), bound(flow.estimate))


class FlowLikelihood(NamedTuple):
    """The likelihood of each image, and what its ODE took."""

    log_density: Float[Array, " b"]  # nats per dimension; -inf, never NaN, without success
    evaluations: Int[Array, " b"]  # of the velocity along the solve (the network and its vjp)
    success: Bool[Array, " b"]  # the solver reached the prior within its tolerance

    def bits_per_dim(self, num_levels: int = 256) -> Float[Array, " b"]:
        """-log2(density per dimension) - log2(width of a bin), for images from `dequantize`.

        Its mean over the noise bounds -log2 of an image's probability from above (Theis et al.
        2016, section 3.1). inf, never NaN, without success. The density is that of the noise level
        of the first timestep, so that a certain pixel, whose bin is narrower than that noise, is
        not free: it costs log2(sqrt(2 pi) sigma / bin width) bits and a little more, 1.71 for 256
        levels where beta_0 = 1e-4. `decoded_bits_per_dim` has no such floor.
        """
        bin_width = 2.0 * bin_half_width(num_levels)
        return to_bits_per_dim(-self.log_density) - float(np.log2(bin_width))


def make_flow(apply: Callable[..., jax.Array], process: Process) -> Flow:
    """The probability-flow ODE of a network that was trained on a chain or a path (Song Eq. 13).

    On any path it is dx/du = signal'(u) x_0(x, u) + noise'(u) eps(x, u), the mean velocity of the
    x_u that meet in x. Of a chain, which keeps the variance, that is Song's
    1/2 (d log alpha_bar / du) (x - eps(x, u) / sqrt(1 - alpha_bar(u))).

    Args:
        apply: (params, x_t f32[B, ...], told f32[B], **inputs) -> network output. The timestep
            is a float: the chain's own at integer u, and between its entries elsewhere.
        process: of concrete tables, not traced ones, that predicts eps, x_0 or v; of its variance
            only how many outputs belong to it matters, which are split off.

    Raises:
        ValueError: for a network that predicts the mean of single steps (`mu`), which says nothing
            between them.
    """
    schedule, parameterization, variance, path = process
    if parameterization.predicts_mean:
        others = [name for name, each in PARAMETERIZATIONS.items() if not each.predicts_mean]
        raise ValueError(
            "this network predicts the mean of single steps (mu), which continuous time does not "
            f"have. Choose a network that predicts {' or '.join(others)}."
        )
    path = path or through(schedule)
    check_process(process)

    def estimate(params: Any, x: jax.Array, u: jax.Array, **inputs: Any) -> jax.Array:
        now = fit(at(path, u), x)
        output = ask(apply, process, params, now, x, **inputs)
        value, _ = split_output(variance, output, x)
        return parameterization.decode(now, value, x)

    def velocity(params: Any, x: jax.Array, u: jax.Array, **inputs: Any) -> jax.Array:
        now, x_0 = fit(at(path, u), x), estimate(params, x, u, **inputs)
        eps = (x - now.signal * x_0) / now.noise
        return now.d_signal * x_0 + now.d_noise * eps

    return Flow(velocity, estimate, path.start, path.end, path.deviation)


def rademacher(key: Key[Array, ""], num: int, shape: tuple[int, ...]) -> Float[Array, "p ..."]:
    """f32[num, *shape] of fair signs; row j is a function of (key, j) alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))
    return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(keys)


def divergence(
    field: Callable[[jax.Array], jax.Array], x: Float[Array, "*x"], probes: Float[Array, "p *x"]
) -> tuple[Float[Array, "*x"], Scalar]:
    """field(x), and the mean over the probes v of v . (d field / dx) v (Song Eq. 40).

    By reverse mode. In expectation over probes of zero mean and unit covariance it is the trace of
    the Jacobian (the Skilling-Hutchinson estimator), and for the D unit vectors times sqrt(D) it is
    that trace exactly.
    """
    value, pull = jax.vjp(field, x)
    products = jax.vmap(lambda v: jnp.sum(v * pull(v)[0]))(probes)
    return value, jnp.mean(products)


def _error_norm(error: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The larger of x's root mean square and the log-density's, which thousands of pixels hide."""
    x, log_density = error
    return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(x))), jnp.abs(log_density))


def _solve(
    field: Callable[[jax.Array, jax.Array], jax.Array],
    flow: Flow,
    x: Float[Array, "*x"],
    probes: Float[Array, "p *x"],
    controller: Any,
    max_steps: int,
) -> tuple[Scalar, Int[Array, ""], Bool[Array, ""]]:
    """(log-density in nats per dimension, evaluations, success) of one image (Song Eq. 39)."""
    import diffrax  # half a second, of which those who need no likelihood have no use

    def derivative(u: Any, state: Any, _: None) -> Any:
        value, trace = divergence(lambda x: field(x, u), state[0], probes)
        return value, trace / x.size

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=flow.start,
        t1=flow.end,
        dt0=min(flow.start or FIRST_STEP, flow.end - flow.start),
        y0=(x, jnp.zeros(())),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None and solution.stats is not None
    x_end, integral = (leaf[-1] for leaf in solution.ys)
    square = jnp.mean(jnp.square(x_end / flow.deviation))
    prior = -0.5 * (square + float(np.log(2.0 * np.pi * flow.deviation**2)))
    log_density = prior + integral
    success = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(log_density)
    # Tsit5 evaluates six times a step, the last of which is the next's first, and once at u = 0
    # (again wherever the very first step is refused, which is not counted).
    evaluations = 6 * solution.stats["num_steps"] + 1
    return jnp.where(success, log_density, -jnp.inf), evaluations, success


def likelihood(
    flow: Flow,
    params: Any,
    x: Float[Array, "b *x"],
    keys: Key[Array, " b"],
    *,
    num_probes: int | None = 1,
    rtol: float | Scalar = 1e-5,
    atol: float | Scalar = 1e-5,
    max_steps: int = 1000,
    **inputs: Any,
) -> FlowLikelihood:
    """log p(x) = log of the prior at x(end) + the integral of the flow's divergence.

    Song Eqs. 39, 40.

    Every image is solved with steps of its own, so that its value does not depend on its batch but
    for rounding, which may alter a step's length, and with it the value within the solve's error.
    An image's probes stay the same along its solve; a batch takes as long as its hardest image.

    Args:
        flow: from `make_flow`.
        x: f32[B, ...] in the units of the data; 8-bit images go through `dequantize` first.
        keys: one key per image, of a stream of their own: image i's probes depend on keys[i] alone.
        num_probes: how many probes estimate each divergence, at one vjp each; None for the exact
            divergence, at one vjp per dimension.
        rtol, atol: tolerance of one step, relative to and beside the size of x and of the
            log-density in nats per dimension; float32 gives no more than about 1e-6.
        max_steps: of the solver, for one image, refused ones included.
        **inputs: further inputs of the network, with B as their first axis.

    Returns:
        FlowLikelihood of [B] each. Images that need more than `max_steps` or meet a NaN have
        success False and log-density -inf.

    Raises:
        ValueError: if `num_probes` is below 1.
    """
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes = {num_probes} is not possible: choose 1 or more, or None.")
    import diffrax

    controller = diffrax.PIDController(
        *(rtol, atol),
        norm=_error_norm,
        dtmin=SHORTEST_STEP * (flow.start or FIRST_STEP),
        force_dtmin=False,
    )

    def one(image: jax.Array, key: jax.Array, extra: dict[str, Any]) -> tuple:
        batch = {name: value[None] for name, value in extra.items()}
        if num_probes is None:
            probes = float(np.sqrt(image.size)) * jnp.eye(image.size)
        else:
            probes = rademacher(key, num_probes, image.shape)

        def field(x: jax.Array, u: jax.Array) -> jax.Array:
            return flow.velocity(params, x[None], u, **batch)[0]

        probes = probes.reshape(-1, *image.shape)
        return _solve(field, flow, image, probes, controller, max_steps)

    return FlowLikelihood(*jax.vmap(one)(x, keys, inputs))


def dequantize(
    x_0: Float[Array, "b *x"], keys: Key[Array, " b"], num_levels: int = 256
) -> Float[Array, "b *x"]:
    """x_0 plus noise that is uniform over its bin: in [x_0 - h, x_0 + h), h = 1/(num_levels - 1).

    The bins are those of the chain's decoder, centred on the levels that the network was trained
    on, so that the noise keeps their mean.

    Args:
        x_0: f32[B, ...], levels k * 2 / (num_levels - 1) - 1.
        keys: one key per image, of a stream of their own.
        num_levels: how many levels the data have.
    """
    half = bin_half_width(num_levels)

    def noise(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, x_0.shape[1:], x_0.dtype, -half, half)

    return x_0 + jax.vmap(noise)(keys)


def decoded_bits_per_dim(
    schedule: Schedule,
    found: FlowLikelihood,
    prediction: Prediction,
    x_0: Float[Array, "b *x"],
    x_t: Float[Array, "b *x"],
    decoder: Decoder,
) -> Float[Array, " b"]:
    """The bound of the flow joined to the chain's decoder, which dequantizes nothing.

    log p(x_0) >= E_q(x_1 | x_0) [log p_flow(x_1) + log p(x_0 | x_1) - log q(x_1 | x_0)], the bound
    of a model whose only latent is the paper's x_1 (t = 0 here) with the flow's density for its
    prior. The discretized decoder makes it a probability of the levels themselves.

    Args:
        found, prediction: of `likelihood` and of the network, at x_t and t = 0.
        x_t: f32[B, ...], drawn from q(x_1 | x_0), t = 0 of `q_sample`.

    Returns:
        f32[B] in bits per dimension; inf, never NaN, without success of the flow.
    """
    first = jnp.zeros((), jnp.int32)
    q = q_marginal(schedule, x_0, first)
    square = jnp.square(x_t - q.mean) * jnp.exp(-q.log_variance)
    log_q = mean_per_example(-0.5 * (square + q.log_variance + float(np.log(2.0 * np.pi))))
    log_p = mean_per_example(decoder(x_0, Gaussian(prediction.mean, prediction.log_variance)))
    return to_bits_per_dim(log_q - log_p - found.log_density)
