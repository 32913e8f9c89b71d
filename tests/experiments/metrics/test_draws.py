"""The bound of what is drawn anew with every draw of the noise, as latents are."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices
from experiments.build import build
from experiments.metrics import baselines, bound


def test_every_part_is_the_mean_over_the_draws(
    tiny: Callable[[], ConfigDict], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L_T too, which depends on x_0 alone, and so on the draw where x_0 does."""
    config = tiny()
    config.evaluate.num_draws, config.evaluate.timesteps_per_call = 3, 3
    experiment = build(config)
    pixels = experiment.encoder

    def draw(image: jax.Array, keys: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.normal(key, pixels.shape))(keys)
        return pixels.encode(image) + noise

    experiment = experiment._replace(encoder=pixels._replace(draw=draw))
    make, priors = bound.make_terms_fn, {}

    def recording(*arguments):
        terms_fn = make(*arguments)

        def call(params, batch, indices, t, draw):
            found = terms_fn(params, batch, indices, t, draw)
            priors[int(draw), int(indices[0])] = np.asarray(found[0]) / np.log(2)
            return found

        return call

    monkeypatch.setattr(bound, "make_terms_fn", recording)
    mesh = devices.make_mesh(jax.devices()[:1])
    table = bound.evaluate_bound(
        experiment,
        baselines.untrained_denoise(experiment.method.chain),
        *({}, experiment.dataset.open("test"), 10, mesh, tmp_path),
    )
    by_draw = np.array([np.concatenate([priors[d, 0], priors[d, 8]])[:10] for d in range(3)])
    assert np.ptp(by_draw, axis=0).min() > 0
    np.testing.assert_allclose(table.prior, by_draw.mean(axis=0), rtol=1e-6)
    assert table.draws.mean() == pytest.approx(table.total.mean())
