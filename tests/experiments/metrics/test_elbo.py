"""The bound of a VAE as a metric, of a linear one about which everything is known."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion.structs import Gaussian
from diffusion.vae import full_normal_kl
from experiments import devices, images
from experiments.build import build
from experiments.data.dataset import read_images
from experiments.experiment import Experiment
from experiments.methods.method import VAE
from experiments.metrics import elbo
from experiments.metrics.metric import Context
from experiments.workdir.origin import Origin
from tests.diffusion.test_vae import Linear

COUNT, IDLE = 24, (0.12, 0.08)  # deviations over images of the means of what is not decoded


class Known:
    """Linear(...) of 8x8 pixels, two coordinates of z that it decodes and two that it does not."""

    def __init__(self, experiment: Experiment) -> None:
        self.linear, source = Linear(0, size=64, deviation=0.5), experiment.dataset.open("test")
        stored = jnp.asarray(read_images(source, 0, COUNT)["image"])
        x = images.to_model(stored, experiment.dataset.num_levels)
        self.x = np.asarray(x, np.float64).reshape(COUNT, -1)
        offset, self.covariance = self.linear.posterior(np.zeros((1, 64)))
        gain = self.linear.posterior(np.eye(64))[0] - offset
        brightness = self.x.mean(1)
        idle = np.full((64, 1), 1 / 64) * np.array(IDLE) / brightness.std(ddof=1)
        self.gain = np.concatenate([gain, idle], 1)
        self.offset = np.append(offset + 0.1, -brightness.mean() * 64 * idle[0])
        self.log_variance = np.append(np.log(1.5 * np.diag(self.covariance)), [0.0, 0.0])

    @property
    def means(self) -> np.ndarray:
        """f64[COUNT, 4], of q(z | x), which is not the posterior."""
        return self.x @ self.gain + self.offset

    @property
    def log_density(self) -> np.ndarray:
        return self.linear.log_density(self.x)

    @property
    def divergence(self) -> np.ndarray:
        """KL(q(z | x) || p(z | x)); the prior is the posterior of what is not decoded."""
        mean = np.pad(self.linear.posterior(self.x)[0], ((0, 0), (0, 2)))
        covariance = np.eye(4)
        covariance[:2, :2] = self.covariance
        return np.array(
            [
                full_normal_kl(q, jnp.diag(jnp.exp(self.log_variance)), p, jnp.asarray(covariance))
                for q, p in zip(jnp.asarray(self.means), jnp.asarray(mean), strict=True)
            ]
        )

    @property
    def vae(self) -> VAE:
        gain, offset, log_variance = (
            jnp.asarray(value, jnp.float32) for value in (self.gain, self.offset, self.log_variance)
        )

        def encode(params: Any, x: jax.Array) -> Gaussian:
            mean = x.reshape(len(x), -1) @ gain + offset
            return Gaussian(mean, jnp.broadcast_to(log_variance, mean.shape))

        def decode(params: Any, z: jax.Array) -> jax.Array:
            return self.linear.decode(z[:, :2]).reshape(-1, 8, 8, 1)

        return VAE((4,), encode, decode, self.linear.likelihood)


@pytest.fixture(scope="module")
def known(tiny_vae: Callable[[], ConfigDict]) -> Known:
    return Known(build(tiny_vae()))


@pytest.fixture
def measured(
    known: Known, tiny_vae: Callable[[], ConfigDict], tmp_path: pathlib.Path
) -> Callable[..., dict[str, Any]]:
    """(number of draws, batch size) -> the metric's values."""

    def measure(draws: int, batch_size: int) -> dict[str, Any]:
        config = tiny_vae()
        config.evaluate.update(num_importance=draws, batch_size=batch_size)
        experiment = build(config)
        experiment = experiment._replace(method=experiment.method._replace(vae=known.vae))
        source, folder = experiment.dataset.open("test"), tmp_path / f"{draws}-{batch_size}"
        made = (
            experiment,
            folder,
            devices.make_mesh(),
            0,
            {},
            source,
            COUNT,
            "",
            Origin("ema", ""),
        )
        return elbo.evidence_lower_bound(Context(*made)).values

    return measure


def test_many_draws_have_the_likelihood_and_their_mean_its_bound(known, measured) -> None:
    """log p(x) - ELBO = KL(q(z | x) || p(z | x)), and the bound of Burda et al. has no gap left."""
    values = measured(1000, COUNT)
    nats = {name: 64 * np.log(2) * found["value"] for name, found in values.items()}
    gap = known.divergence.mean()
    assert gap > 1.5
    assert nats["bits_per_dim"] == pytest.approx(gap - known.log_density.mean(), abs=0.05)
    assert nats["iwae_bits_per_dim"] == pytest.approx(-known.log_density.mean(), abs=0.1)
    spread = known.log_density.std(ddof=1) / np.sqrt(COUNT)
    assert 64 * np.log(2) * values["iwae_bits_per_dim"]["standard_error"] == pytest.approx(
        spread, rel=0.02
    )


def test_a_unit_is_active_where_the_variance_of_its_mean_says_so(known, measured) -> None:
    """More than 0.01 over images (Burda et al., section 5.2)."""
    active = measured(1, COUNT)["active_units"]
    expected = known.means.var(axis=0, ddof=1) > 0.01
    assert expected[2:].tolist() == [True, False]
    assert active == {"value": expected.sum(), "of": 4}


def test_an_image_has_the_same_draws_in_any_batch(measured) -> None:
    one, other = measured(2, 8), measured(2, COUNT)
    for name in one:
        assert one[name]["value"] == pytest.approx(other[name]["value"], rel=1e-5), name
