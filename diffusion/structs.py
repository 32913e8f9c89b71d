"""The immutable records that the functions of this package pass around."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.spacings import Spacing, uniform


class Schedule(NamedTuple):
    """Tables of a discrete chain, f32[T] each, derived in float64 by `schedules.from_betas`.

    `t` is 0-based everywhere: t = 0 is the paper's t = 1, and t = T - 1 is its t = T.
    """

    beta: jax.Array  # beta_t, variance of one step, in (0, 1]
    alpha: jax.Array  # 1 - beta_t
    alpha_bar: jax.Array  # prod_{s <= t} alpha_s
    alpha_bar_prev: jax.Array  # alpha_bar_{t-1}, with 1 at t = 0
    noise_variance: jax.Array  # 1 - alpha_bar_t, without the cancellation of float32
    signal: jax.Array  # sqrt(alpha_bar_t), the coefficient of x_0 in x_t
    noise: jax.Array  # sqrt(1 - alpha_bar_t), that of eps
    log_beta: jax.Array
    large_log_variance: jax.Array  # log beta_t, but for entry 0, log beta-tilde_1
    posterior_variance: jax.Array  # beta-tilde_t of DDPM Eq. 7; 0 at t = 0
    posterior_log_variance: jax.Array  # log beta-tilde_t, whose entry 0 repeats entry 1
    posterior_mean_x_0: jax.Array  # coefficient of x_0 in mu-tilde_t, DDPM Eq. 7
    posterior_mean_x_t: jax.Array  # coefficient of x_t in mu-tilde_t, DDPM Eq. 7
    told: jax.Array  # i32[T], the timestep that the network is told; f32[T] of a path
    # Derivatives of signal and noise by u on a path; None of a chain, which has no time between.
    d_signal: jax.Array | None = None
    d_noise: jax.Array | None = None

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps of this chain."""
        return self.beta.shape[0]


class Point(NamedTuple):
    """x_u = signal x_0 + noise eps at one u, or at many: f32 of one shape each."""

    signal: jax.Array  # a(u), in [0, 1]
    noise: jax.Array  # s(u), >= 0
    d_signal: jax.Array  # da/du, <= 0
    d_noise: jax.Array  # ds/du
    told: jax.Array  # what the network is told instead of u

    @property
    def alpha_bar(self) -> jax.Array:
        """The signal's coefficient squared, as `Schedule` has it."""
        return jnp.square(self.signal)

    @property
    def noise_variance(self) -> jax.Array:
        """The noise's coefficient squared, as `Schedule` has it."""
        return jnp.square(self.noise)


class Path(NamedTuple):
    """x_u = signal(u) x_0 + noise(u) eps for real u in [start, end]; see `paths`.

    signal, noise, told: u of any shape -> the same shape, differentiable; `told` is what the
        network is told.
    start: the least u that the network is asked at; clean data lie at it or below.
    end: where only noise is left, or nearly.
    deviation: of x at the end, whose law is taken for N(0, deviation^2 I).
    spacing: of walks for which none is asked, an entry of `grids.GRIDS`.
    """

    signal: Callable[[jax.Array], jax.Array]
    noise: Callable[[jax.Array], jax.Array]
    told: Callable[[jax.Array], jax.Array]
    start: float
    end: float
    deviation: float = 1.0
    spacing: str = "trailing"


class Levels(NamedTuple):
    """Points that a walk passes, f64[T + 1] each: entry 0 is clean data, a step is t + 1 to t.

    Entry t + 1 is timestep t of the walk. `time` and `told` have no meaning at entry 0.
    """

    time: np.ndarray  # u on the path, of a chain its network's timesteps
    signal: np.ndarray
    noise: np.ndarray
    log_ratio: np.ndarray  # log(signal / noise), half the log of the SNR; inf at entry 0
    told: np.ndarray  # what the network is told
    variance: np.ndarray  # of q(x_t | x_{t+1}, x_0), f64[T]: of the step from entry t + 1 to t
    # Of a path: derivatives of signal and noise by u, f64[T + 1], and the path itself.
    d_signal: np.ndarray | None = None
    d_noise: np.ndarray | None = None
    path: Path | None = None

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return len(self.variance)


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
    """The prediction asked of the network, as functions of the place of x_t on its way.

    target: (now, x_0, eps, x_t) -> what the network should emit, linear in the last three; `now`
        is a `Point`, or the row of a `Schedule` at t.
    decode: (now, output, x_t) -> x_0; affine in `output`.
    predicts_mean: the output is itself the mean of p(x_{t-1} | x_t).
    needs_signal: decode divides by alpha_bar_t, which then must not reach 0.
    needs_path: target and decode read the derivatives by u that only a path has.
    keeps_variance: decode is for signal^2 + noise^2 = 1, as of every chain.
    scale_in: now -> the factor of x_t before the network sees it; None is 1.
    """

    target: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    predicts_mean: bool
    needs_signal: bool
    needs_path: bool = False
    keeps_variance: bool = False
    scale_in: Callable[..., jax.Array] | None = None


class Variance(NamedTuple):
    """The variance of p(x_{t-1} | x_t), always as a logarithm.

    extra_channels: how many outputs beyond the mean's the network emits per data channel, 0 or 1.
    log_variance: (now, extra, x_t) -> log-variance broadcastable to x_t; see `variances`.
    one_step: learned of single steps of the network's own chain, and of no respaced one.
    """

    extra_channels: int
    log_variance: Callable[..., jax.Array]
    one_step: bool = False


class Times(NamedTuple):
    """How training draws t, or u, with the weights that keep the loss unbiased.

    init: () -> state.
    sample: (state, keys) -> (t i32[B], or u f32[B]; weight f32[B]).
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
    """One way to walk from x_T to x_0 on levels that are known when it is made.

    num_steps: of the walk.
    init: x_T -> memory, a pytree that the steps hand on, every leaf [B, ...]; () for a Markov
        sampler.
    step: see `SamplerStep`.
    stochastic: whether steps take noise, so that x_T alone does not decide what is drawn.
    uses_variance: whether steps depend on the variance of p(x_{t-1} | x_t) that the model has.
    needs_signal: whether it can begin only where some signal is left, and not at pure noise.
    needs_path: whether its steps are of u, which only a path has.
    order: of its error in the number of steps, as a solver of the probability flow; 0 for one that
        solves none.
    continuous: whether steps ask the model between levels, as a `probability_flow.BoundFlow`.
    adaptive: whether it chooses its own steps between the levels, which are few by default.
    spacing: its timesteps where none are asked for, an entry of `spacings.SPACINGS`.
    """

    num_steps: int
    init: Callable[[jax.Array], Any]
    step: SamplerStep
    stochastic: bool = False
    uses_variance: bool = False
    needs_signal: bool = False
    needs_path: bool = False
    order: int = 0
    continuous: bool = False
    adaptive: bool = False
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
    """A chain, or a path in continuous time, and how the network's output is read on it.

    schedule: the chain; of a path, one through it, on which it is walked and bounded.
    path: x_u for real u, at which training asks the network; None of a chain.
    """

    schedule: Schedule
    parameterization: Parameterization
    variance: Variance
    path: Path | None = None
