"""Correlated Gaussian data in continuous time: its density, its flow and its best network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import through
from diffusion.probability_flow import Flow, make_flow
from diffusion.schedules import BETAS, from_betas
from diffusion.structs import Point, Process, Schedule
from diffusion.variances import VARIANCES

LINEAR = from_betas(BETAS["linear"](1000))
SHORT = from_betas(BETAS["linear"](100, beta_start=1e-3, beta_end=0.5))  # ends in N(0, I)
CONSTANT = from_betas(BETAS["constant"](1000))  # log alpha_bar is a straight line; so does this
SHAPE, DIMS = (2, 1, 3), 6


class Data(NamedTuple):
    """x_0 ~ N(mean, R diag(std^2) R^T), flattened; all in float64."""

    mean: np.ndarray
    std: np.ndarray
    rotation: np.ndarray

    def variance(self, log_alpha_bar: float) -> np.ndarray:
        """Eigenvalues of the covariance of x at a noise level."""
        return np.exp(log_alpha_bar) * self.std**2 - np.expm1(log_alpha_bar)

    def draw(self, log_alpha_bar: float, number: int, seed: int = 3) -> jax.Array:
        normal = np.random.default_rng(seed).normal(size=(number, DIMS))
        x = normal * np.sqrt(self.variance(log_alpha_bar)) @ self.rotation.T
        return jnp.asarray(
            (x + np.exp(log_alpha_bar / 2) * self.mean).reshape(-1, *SHAPE), jnp.float32
        )

    def log_density(self, log_alpha_bar: float, x: jax.Array) -> np.ndarray:
        """Of the true marginal, per dimension."""
        flat = np.asarray(x, np.float64).reshape(-1, DIMS) - np.exp(log_alpha_bar / 2) * self.mean
        variance = self.variance(log_alpha_bar)
        square = (flat @ self.rotation) ** 2 / variance
        return -0.5 * (square + np.log(2 * np.pi * variance)).mean(axis=1)

    def flow_log_density(self, first: float, last: float, x: jax.Array) -> np.ndarray:
        """Of the exact flow from N(0, I), which is the marginal but for what signal x_T has left.

        The flow keeps every eigendirection's deviation in proportion to its standard deviation.
        """
        flat = np.asarray(x, np.float64).reshape(-1, DIMS) - np.exp(first / 2) * self.mean
        ratio = self.variance(last) / self.variance(first)
        end = flat @ self.rotation * np.sqrt(ratio) + np.exp(last / 2) * self.mean @ self.rotation
        return 0.5 * (np.log(ratio) - end**2 - np.log(2 * np.pi)).mean(axis=1)


DATA = Data(
    mean=np.array([0.3, -0.2, 0.1, 0.0, 0.5, -0.4]),
    std=np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0]),
    rotation=np.linalg.qr(np.random.default_rng(5).normal(size=(DIMS, DIMS)))[0],
)


def ends(schedule: Schedule) -> tuple[float, float]:
    """log alpha_bar at u = 0 and u = T - 1, in float64 from the schedule's betas."""
    total = np.cumsum(np.log1p(-np.asarray(schedule.beta, np.float64)))
    return float(total[0]), float(total[-1])


def straight(t: jax.Array) -> jax.Array:
    """log alpha_bar of CONSTANT at any t."""
    return (t + 1.0) * np.log1p(-0.02)


def curved(schedule: Schedule) -> Callable[[jax.Array], jax.Array]:
    path = through(schedule)
    return lambda t: 2.0 * jnp.log(path.signal(t))


def best_apply(name: str, log_alpha_bar: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The optimal denoiser of DATA at real t, in the output of a parameterization."""

    def apply(params: Any, x: jax.Array, t: jax.Array, shift: Any = 0.0) -> jax.Array:
        log = log_alpha_bar(t)[:, None]
        root, noise = jnp.exp(0.5 * log), -jnp.expm1(log)
        zero = jnp.zeros_like(log)  # derivatives, and what is told, play no part
        now = Point(root, jnp.sqrt(noise), zero, zero, zero)
        if (scale_in := PARAMETERIZATIONS[name].scale_in) is not None:
            x = (x.reshape(len(x), -1) / scale_in(now)).reshape(x.shape)
        mean = root * (DATA.mean + jnp.reshape(shift, (-1, 1)))
        centred = (x.reshape(len(x), -1) - mean) @ DATA.rotation
        variance = jnp.exp(log) * DATA.std**2 + noise
        eps = jnp.sqrt(noise) * (centred / variance) @ DATA.rotation.T
        x_0 = (mean + (root * DATA.std) ** 2 * centred / variance @ DATA.rotation.T) / root
        flat = x.reshape(len(x), -1)
        return PARAMETERIZATIONS[name].target(now, x_0, eps, flat).reshape(x.shape)

    return apply


def best_flow(
    schedule: Schedule, name: str = "eps", log_alpha_bar: Callable[..., jax.Array] | None = None
) -> Flow:
    apply = best_apply(name, log_alpha_bar or curved(schedule))
    return make_flow(apply, Process(schedule, PARAMETERIZATIONS[name], VARIANCES["fixed_large"]))
