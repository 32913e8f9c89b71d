"""The loop, the sampler, the log and the metrics know a method by its contract alone."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import build, devices, evaluate, hooks, images, train
from experiments.data.dataset import read_images
from experiments.data.digits import digits
from experiments.drawing import draw, make_sample_fn
from experiments.methods.method import pixels
from experiments.state import init_state, load_ema
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments import modes

Make = Callable[[], ConfigDict]


@pytest.fixture
def config(plain: Make) -> ConfigDict:
    config = plain()
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_steps = 0
    config.train.num_steps = config.train.checkpoint_every = 400
    config.train.log_every, config.train.steps_per_call = 100, 20
    config.train.preview_every, config.train.preview_images = 400, 4
    config.ema_decay = 0.9
    return config


def test_another_method_trains_logs_and_samples(
    config: ConfigDict, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """What it learns is the mean and deviation of every pixel that has one."""
    experiment = build.build(config)
    assert hooks.train_with_hooks(experiment, tmp_path) is Outcome.FINISHED
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "square", "scale"} <= set(lines[0]) and "loss_q0" not in lines[0]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    said = capsys.readouterr().out
    assert "  square " in said and "  scale " in said
    assert (tmp_path / "previews" / "00000400.png").is_file()
    loaded = load_ema(experiment, tmp_path, devices.make_mesh())
    train = experiment.dataset.open("train")
    x = np.asarray(images.to_model(read_images(train, 0, len(train))["image"], 17))
    varied = x.std(axis=0) > 0.1
    np.testing.assert_allclose(
        np.asarray(loaded.params["mean"])[varied], x.mean(axis=0)[varied], atol=0.15
    )
    mesh = devices.make_mesh()
    drawn = draw(
        make_sample_fn(experiment, mesh, num_steps=0, quantize="none"),
        loaded.params,
        0,
        512,
        512,
        mesh,
    )
    found = drawn.samples / 127.5 - 1  # clipped to [-1, 1], which moves the mean a little
    assert np.corrcoef(found.mean(axis=0)[varied], x.mean(axis=0)[varied])[0, 1] > 0.98
    results = modes.sample(experiment, tmp_path)
    assert results["num_steps"] == 1 and results["sampler"] == {"name": "gaussian"}


def test_metrics_of_a_chain_refuse_a_method_without_one(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    experiment, refused = build.build(config), {}
    for name, metric in evaluate.METRICS.items():
        try:
            metric.check(experiment)
        except ValueError as error:
            refused[name] = str(error)
    assert all(re.search(rf"metrics?:? {name}\b", words) for name, words in refused.items())
    for name in ("bpd", "bpd_fast", "ode", "chain"):
        assert f"The metric {name} needs the timesteps of a diffusion process" in refused[name]
    assert {"elbo", "latent_bound"} <= set(refused) and "baselines" not in refused
    config.train.num_steps = config.train.checkpoint_every = 100
    config.train.preview_every = 0
    experiment = build.build(config)
    assert hooks.train_with_hooks(experiment, tmp_path) is Outcome.FINISHED
    config.evaluate.metrics = "baselines"
    experiment = build.build(config)
    evaluate.check(experiment)
    found = modes.evaluate(experiment, tmp_path)["baselines"]
    assert "gaussian_per_pixel" in found and "untrained_network" not in found
    assert list(read_results(tmp_path)) == ["train", "baselines"]


def test_its_checkpoint_is_not_another_method_s(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    config.train.num_steps = config.train.checkpoint_every = 100
    config.train.preview_every = 0
    hooks.train_with_hooks(build.build(config), tmp_path)
    config.method = ConfigDict(dict(name="diffusion"))
    with pytest.raises(ValueError, match=r"method.name: gaussian then, diffusion now"):
        load_ema(build.build(config), tmp_path, devices.make_mesh())
    config.method = ConfigDict(dict(name="vea"))
    with pytest.raises(ValueError, match=r"config.method.name = 'vea' is not known. .*diffusion"):
        build.build(config)


def test_pixels_are_their_own_encoding() -> None:
    encoder = pixels(digits()._replace(image_shape=(4, 4, 1), num_levels=256))
    stored = np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1)
    x = encoder.encode(jnp.asarray(stored))
    assert x.shape[1:] == encoder.shape and float(x.min()) == -1 and float(x.max()) == 1
    np.testing.assert_array_equal(images.to_uint8(encoder.decode(x)), stored)


@pytest.mark.parametrize(("make", "uses"), [("tiny", 4), ("tiny_vae", 3)])
def test_every_use_of_randomness_in_training_has_its_own_keys(
    make: str, uses: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flips, the encoder's noise and all that the method draws, of every example and step."""
    config = request.getfixturevalue(make)()
    config.train.flip = True
    plain, found = build.build(config), []

    def noted(keys: jax.Array) -> jax.Array:
        found.append(np.asarray(jax.random.key_data(keys)))
        return keys

    def draw(memory: Any, x_0: jax.Array, labels: jax.Array, keys: Any) -> Any:
        return plain.method.draw(memory, x_0, labels, lambda name: noted(keys(name)))

    flip = images.random_flip
    monkeypatch.setattr(images, "random_flip", lambda keys, image: flip(noted(keys), image))
    experiment = plain._replace(
        method=plain.method._replace(draw=draw),
        encoder=plain.encoder._replace(
            draw=lambda kept, keys: plain.encoder.draw(kept, noted(keys))
        ),
    )
    state, steps, size = init_state(plain), 3, 8
    batch = {"image": jnp.zeros((size, 8, 8, 1), jnp.uint8), "label": jnp.zeros(size, jnp.int32)}
    for step in range(steps):
        train.draw_examples(experiment, state._replace(step=jnp.int32(step)), batch)
    every = np.concatenate(found)
    assert len(every) == uses * steps * size == len(np.unique(every, axis=0))
