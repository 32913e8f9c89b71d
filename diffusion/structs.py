"""The immutable records that the functions of this package pass around."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffusion.spacings import Spacing, uniform


class Schedule(NamedTuple):
    """Tables of the forward process, f32[T] each, derived in float64 by `schedules.from_betas`.

    `t` is 0-based everywhere: t = 0 is the paper's t = 1, and t = T - 1 is its t = T.
    """

    beta: jax.Array  # beta_t, variance of one step, in (0, 1]
    alpha: jax.Array  # 1 - beta_t
    alpha_bar: jax.Array  # prod_{s <= t} alpha_s
    alpha_bar_prev: jax.Array  # alpha_bar_{t-1}, with 1 at t = 0
    one_minus_alpha_bar: jax.Array  # 1 - alpha_bar_t, without the cancellation of float32
    sqrt_alpha_bar: jax.Array
    sqrt_one_minus_alpha_bar: jax.Array
    log_beta: jax.Array
    large_log_variance: jax.Array  # log beta_t, but for entry 0, log beta-tilde_1
    posterior_variance: jax.Array  # beta-tilde_t of DDPM Eq. 7; 0 at t = 0
    posterior_log_variance: jax.Array  # log beta-tilde_t, whose entry 0 repeats entry 1
    posterior_mean_x_0: jax.Array  # coefficient of x_0 in mu-tilde_t, DDPM Eq. 7
    posterior_mean_x_t: jax.Array  # coefficient of x_t in mu-tilde_t, DDPM Eq. 7
    model_t: jax.Array  # i32[T], the timestep that the network is told

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps of this chain."""
        return self.beta.shape[0]


class NoiseLevel(NamedTuple):
    """A point between the timesteps of a chain, on a `NoiseCurve`, f32[] each."""

    log_alpha_bar: jax.Array
    rate: jax.Array  # d log alpha_bar / du, <= 0
    model_t: jax.Array  # what the network is told

    @property
    def sqrt_alpha_bar(self) -> jax.Array:
        """The signal's coefficient, as `Schedule` names it."""
        return jnp.exp(0.5 * self.log_alpha_bar)

    @property
    def sqrt_one_minus_alpha_bar(self) -> jax.Array:
        """The noise's coefficient."""
        return jnp.sqrt(-jnp.expm1(self.log_alpha_bar))


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance; the two arrays broadcast against each other."""

    mean: jax.Array
    log_variance: jax.Array


class Prediction(NamedTuple):
    """What a sampler or a likelihood term needs of the network, whatever the network emits."""

    x_0: jax.Array  # estimate of the clean data
    eps: jax.Array  # estimate of the noise, consistent with x_0
    mean: jax.Array  # mean of p(x_{t-1} | x_t)
    log_variance: jax.Array  # its log-variance, broadcastable to `mean`


class Parameterization(NamedTuple):
    """What the network is asked to predict, as functions of (schedule, ..., t).

    target: (now, x_0, eps, x_t) -> what the network should emit; `now` holds the tables at t.
    decode: (now, output, x_t) -> x_0; affine in `output`.
    predicts_mean: the output is itself the mean of p(x_{t-1} | x_t).
    needs_signal: decode divides by alpha_bar_t, which then must not reach 0.
    """

    target: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    predicts_mean: bool
    needs_signal: bool


class Variance(NamedTuple):
    """The variance of p(x_{t-1} | x_t), always as a logarithm.

    extra_channels: how many outputs beyond the mean's the network emits per data channel, 0 or 1.
    log_variance: (now, extra, x_t) -> log-variance broadcastable to x_t; see `variances`.
    one_step: learned of single steps of the network's own chain, and of no respaced one.
    """

    extra_channels: int
    log_variance: Callable[..., jax.Array]
    one_step: bool = False


class TimestepSampler(NamedTuple):
    """How training draws t, with the weights that keep the loss unbiased.

    init: () -> state.
    sample: (state, keys) -> (t i32[B], weight f32[B]).
    update: (state, t, losses f32[B]) -> state.
    """

    init: Callable[[], Any]
    sample: Callable[..., tuple[jax.Array, jax.Array]]
    update: Callable[..., Any]


BoundDenoise = Callable[[jax.Array, jax.Array], Prediction]  # of (x_t, t), parameters bound
Noise = Callable[[Any], jax.Array]  # j -> the j-th standard normal draw of a step, f32[B, ...]


class Step(NamedTuple):
    """What one step of a sampler gives."""

    x: jax.Array  # x_{t-1}; at t = 0 the sample
    x_0: jax.Array  # the estimate at x_t
    memory: Any  # handed on to the next step
    evaluations: int | jax.Array = 1  # of the denoiser, in all or i32[B]


class SamplerStep(Protocol):
    """One step of a sampler, from x_t to x_{t-1}."""

    def __call__(
        self,
        model: Any,  # a BoundDenoise, or where `Sampler.continuous` a flow, parameters bound
        /,
        x_t: jax.Array,  # f32[B, ...]
        t: jax.Array,  # i32[], in [0, num_steps)
        noise: Noise,
        memory: Any,  # what the step before handed on, every leaf [B, ...]
    ) -> Step: ...


class Sampler(NamedTuple):
    """One way to walk from x_T to x_0 on a chain that is known when it is made.

    num_steps: of the walk, the chain's timesteps.
    init: x_T -> memory, a pytree that the steps hand on, every leaf [B, ...]; () for a Markov
        sampler.
    step: see `SamplerStep`.
    uses_variance: whether steps depend on the variance of p(x_{t-1} | x_t) that the model has.
    continuous: whether steps ask the model between timesteps, as a `probability_flow.BoundFlow`.
    deterministic: whether steps take no noise, so that x_T alone decides what is drawn.
    spacing: its timesteps where none are asked for, an entry of `spacings.SPACINGS`.
    """

    num_steps: int
    init: Callable[[jax.Array], Any]
    step: SamplerStep
    uses_variance: bool = False
    continuous: bool = False
    deterministic: bool = False
    spacing: Spacing = uniform


class Likelihood(NamedTuple):
    """p(x | z) of an autoencoder, as functions of what its decoder network gives.

    outputs: values of the network for each value of x.
    log_prob: (x f32[..., C], output f32[..., C * outputs]) -> f32[..., C] nats.
    mean: output -> f32[..., C] in [-1, 1], the picture that is shown.
    discrete: whether log_prob is of one of the data's levels, and so comparable with the bound of a
        diffusion model; else it is a density, or the cross entropy of grey values.
    """

    outputs: int
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    discrete: bool


class Process(NamedTuple):
    """A chain and how the network's output is read on it."""

    schedule: Schedule
    parameterization: Parameterization
    variance: Variance
