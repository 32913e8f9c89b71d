"""The exact likelihood of a trained chain, by its probability-flow ODE.

"Song Eq. n" is Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", arXiv:2011.13456. The chain's 0-based timestep t is made continuous: u in [0, T - 1],
with the chain's own noise levels at the integers. The model is the density at u = 0, which is the
noise level of the first step (variance beta_0), not that of clean data; the prior, at u = T - 1, is
N(0, I). No estimate of x_0 is clipped: that would not be the flow of any density's score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion.likelihood import BIN_HALF_WIDTH, to_bits_per_dim
from diffusion.reverse import check_signal, predict
from diffusion.structs import Parameterization, Schedule, Variance

Scalar = Float[Array, ""]
Velocity = Callable[..., jax.Array]  # (params, x f32[B, ...], u f32[], **inputs) -> f32[B, ...]

FIRST_STEP = 1.0  # in timesteps: the noise's variance at u = 0 grows by about its own size in one
SHORTEST_STEP = 1e-6  # in timesteps; a solve that asks for less has failed


class NoiseCurve(NamedTuple):
    """log alpha_bar(u) and the network's t, between the timesteps of a chain of length T."""

    cubic: Float[Array, "n 4"]  # row k: log alpha_bar on [k, k + 1] in powers of u - k; n = T - 1
    model_t: Float[Array, " T"]  # what the network is told at the integers


class NoiseLevel(NamedTuple):
    """A point of a `NoiseCurve`, f32[] each."""

    log_alpha_bar: Scalar
    rate: Scalar  # d log alpha_bar / du, <= 0
    model_t: Scalar  # what the network is told


class Flow(NamedTuple):
    """A probability-flow ODE dx/du = velocity(params, x, u, **inputs) on u in [0, end].

    velocity: (params, x f32[B, ...], u f32[], **inputs) -> f32[B, ...].
    end: T - 1, where the density is the prior's.
    """

    velocity: Velocity
    end: float


class FlowLikelihood(NamedTuple):
    """The likelihood of each image, and what its ODE took."""

    log_density: Float[Array, " b"]  # nats per dimension; -inf, never NaN, without success
    evaluations: Int[Array, " b"]  # of the velocity along the solve (the network and its vjp)
    success: Bool[Array, " b"]  # the solver reached the prior within its tolerance

    @property
    def bits_per_dim(self) -> Float[Array, " b"]:
        """-log2(density per dimension) - log2(2 / 255), for images that `dequantize` returned.

        Its mean over the noise bounds -log2 of an 8-bit image's probability from above (Theis et
        al. 2016, section 3.1). inf, never NaN, without success.
        """
        return to_bits_per_dim(-self.log_density) - float(np.log2(2.0 * BIN_HALF_WIDTH))


def _solve_1_4_1(right: np.ndarray) -> np.ndarray:
    """f64[n] x with x[k - 1] + 4 x[k] + x[k + 1] = right[k], where x is 0 beyond both ends."""
    x, factor = right.copy(), np.empty_like(right)
    previous, above = 0.0, 0.0
    for k in range(x.size):
        factor[k] = above = 1.0 / (4.0 - above)
        x[k] = previous = (x[k] - previous) * above
    for k in range(x.size - 2, -1, -1):
        x[k] -= factor[k] * x[k + 1]
    return x


def _slopes(rises: np.ndarray) -> np.ndarray:
    """f64[n + 1] derivatives at the knots from the n negative rises between them, at unit spacing.

    Those of the cubic spline that starts and ends with the slopes of the parabolas through three
    knots: its second derivative is continuous, and each jump of it would cost an adaptive solver
    steps. Where the spline might turn, its slope is brought to between 0 and three times
    either neighbouring rise, which suffices for monotone cubics (Fritsch and Carlson 1980).
    """
    if rises.size == 1:
        return np.repeat(rises, 2)
    first, last = 1.5 * rises[0] - 0.5 * rises[1], 1.5 * rises[-1] - 0.5 * rises[-2]
    right = 3.0 * (rises[:-1] + rises[1:])
    right[0] -= first
    right[-1] -= last
    slopes = np.concatenate([[first], _solve_1_4_1(right), [last]])
    nearest = np.maximum(np.append(rises, rises[-1]), np.append(rises[0], rises))
    return np.clip(slopes, 3.0 * nearest, 0.0)


def noise_curve(schedule: Schedule) -> NoiseCurve:
    """A monotone cubic spline of log alpha_bar(u) through the chain's values.

    It is continuously differentiable, and twice so wherever the chain is smooth. The coefficients
    are derived in float64 from beta_t; `model_t` is interpolated linearly.

    Raises:
        ValueError: for a chain of one step, or one that ends in pure noise, which no finite flow
            reaches.
    """
    beta, alpha = (np.asarray(table, np.float64) for table in (schedule.beta, schedule.alpha))
    if beta.size < 2:
        raise ValueError("a probability flow needs a chain of at least 2 timesteps, got 1.")
    if beta[-1] >= 1.0:
        raise ValueError(
            f"beta[{beta.size - 1}] is 1: this chain ends in pure noise (log alpha_bar = -inf), "
            "which its probability flow reaches in no finite time. Choose a schedule whose last "
            "beta is below 1."
        )
    # Each float32 table where it has digits: alpha near 1 and beta near 1 have lost theirs.
    steps = np.where(beta < 0.5, np.log1p(-np.minimum(beta, 0.5)), np.log(alpha))
    values, rises = np.cumsum(steps), steps[1:]
    slopes = _slopes(rises)
    left, right = slopes[:-1], slopes[1:]
    cubic = [values[:-1], left, 3.0 * rises - 2.0 * left - right, left + right - 2.0 * rises]
    return NoiseCurve(
        cubic=jnp.asarray(np.stack(cubic, axis=1), jnp.float32),
        model_t=jnp.asarray(schedule.model_t, jnp.float32),
    )


def noise_level(curve: NoiseCurve, u: Scalar) -> NoiseLevel:
    """The curve at u, f32[] in [0, T - 1]."""
    k = jnp.clip(jnp.floor(u).astype(jnp.int32), 0, curve.cubic.shape[0] - 1)
    s = u - k
    a, b, c, d = curve.cubic[k]
    t = curve.model_t
    return NoiseLevel(
        log_alpha_bar=a + s * (b + s * (c + s * d)),
        rate=b + s * (2.0 * c + s * 3.0 * d),
        model_t=t[k] + s * (t[k + 1] - t[k]),
    )


def _one_step_chain(level: NoiseLevel) -> Schedule:
    """The chain whose only step leads from data to this noise level: f32[1] tables, T = 1."""
    log_alpha_bar = level.log_alpha_bar[None]
    signal, noise = jnp.exp(log_alpha_bar), -jnp.expm1(log_alpha_bar)
    one, zero = jnp.ones_like(signal), jnp.zeros_like(signal)
    return Schedule(
        beta=noise,
        alpha=signal,
        alpha_bar=signal,
        alpha_bar_prev=one,
        one_minus_alpha_bar=noise,
        sqrt_alpha_bar=jnp.exp(0.5 * log_alpha_bar),
        sqrt_one_minus_alpha_bar=jnp.sqrt(noise),
        log_beta=jnp.log(noise),
        posterior_variance=zero,
        posterior_log_variance=jnp.log(noise),
        posterior_mean_x_0=one,
        posterior_mean_x_t=zero,
        model_t=jnp.zeros(1, jnp.int32),
    )


def make_flow(
    apply: Callable[..., jax.Array],
    schedule: Schedule,
    parameterization: Parameterization,
    variance: Variance,
) -> Flow:
    """The probability-flow ODE of a network that was trained on a discrete chain (Song Eq. 13).

    The chain discretises dx = -beta(u)/2 x du + sqrt(beta(u)) dw with
    beta(u) = -d log alpha_bar / du (Song Eq. 11), and the network's score is
    -eps / sqrt(1 - alpha_bar), so that the ODE is

        dx/du = 1/2 (d log alpha_bar / du) (x - eps(x, u) / sqrt(1 - alpha_bar(u))).

    Args:
        apply: (params, x_t f32[B, ...], model_t f32[B], **inputs) -> network output. The timestep
            is a float: the chain's own at integer u, and between its entries elsewhere.
        schedule: concrete tables, not traced ones.
        parameterization: eps, x_0 or v.
        variance: only how many outputs belong to it matters; they are split off.

    Raises:
        ValueError: for a network that predicts the mean of single steps (`mu`), which says nothing
            between them; for a chain of one step or one that ends in pure noise; and if the
            parameterization cannot be decoded on this schedule.
    """
    if parameterization.predicts_mean:
        raise ValueError(
            "this network predicts the mean of single steps (mu), which continuous time does not "
            "have. Choose a network that predicts eps, x_0 or v."
        )
    curve = noise_curve(schedule)
    check_signal(schedule, parameterization)

    def velocity(params: Any, x: jax.Array, u: jax.Array, **inputs: Any) -> jax.Array:
        level = noise_level(curve, u)
        chain, only = _one_step_chain(level), jnp.zeros((), jnp.int32)
        output = apply(params, x, jnp.broadcast_to(level.model_t, x.shape[:1]), **inputs)
        eps = predict(chain, parameterization, variance, output, x, only, clip=False).eps
        return 0.5 * level.rate * (x - eps / chain.sqrt_one_minus_alpha_bar)

    return Flow(velocity, float(schedule.num_timesteps - 1))


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
    end: float,
    x: Float[Array, "*x"],
    probes: Float[Array, "p *x"],
    controller: diffrax.PIDController,
    max_steps: int,
) -> tuple[Scalar, Int[Array, ""], Bool[Array, ""]]:
    """(log-density in nats per dimension, evaluations, success) of one image (Song Eq. 39)."""

    def derivative(u: Any, state: Any, _: None) -> Any:
        value, trace = divergence(lambda x: field(x, u), state[0], probes)
        return value, trace / x.size

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=0.0,
        t1=end,
        dt0=min(FIRST_STEP, end),
        y0=(x, jnp.zeros(())),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None and solution.stats is not None
    x_end, integral = (leaf[-1] for leaf in solution.ys)
    prior = -0.5 * (jnp.mean(jnp.square(x_end)) + float(np.log(2.0 * np.pi)))
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
    """log p(x) = log N(x(T - 1); 0, I) + the integral of the flow's divergence (Song Eqs. 39, 40).

    Every image is solved with steps of its own, so that its value does not depend on its batch but
    for rounding, which may alter a step's length, and with it the value within the solve's error.
    An image's probes stay the same along its solve; a batch takes as long as its hardest image.

    Args:
        flow: from `make_flow`.
        params: the network's parameters; may be traced.
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
    controller = diffrax.PIDController(
        rtol, atol, norm=_error_norm, dtmin=SHORTEST_STEP, force_dtmin=False
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
        return _solve(field, flow.end, image, probes, controller, max_steps)

    return FlowLikelihood(*jax.vmap(one)(x, keys, inputs))


def dequantize(x_0: Float[Array, "b *x"], keys: Key[Array, " b"]) -> Float[Array, "b *x"]:
    """x_0 plus noise that is uniform over its bin: in [x_0 - 1/255, x_0 + 1/255).

    The bins are those of the chain's decoder, centred on the levels that the network was trained
    on, so that the noise keeps their mean.

    Args:
        x_0: f32[B, ...], 8-bit levels k / 127.5 - 1.
        keys: one key per image, of a stream of their own.
    """

    def noise(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, x_0.shape[1:], x_0.dtype, -BIN_HALF_WIDTH, BIN_HALF_WIDTH)

    return x_0 + jax.vmap(noise)(keys)
