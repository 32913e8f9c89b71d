import json
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from diffusion import walk
from experiments import devices
from experiments.build import build
from experiments.data.dataset import load_in_memory
from experiments.drawing import draw, make_sample_fn
from experiments.evaluate import check
from experiments.hooks import make_preview
from experiments.state import TrainState, load_ema
from experiments.workdir.checkpoint import CheckpointError
from experiments.workdir.config import config_to_dict
from tests.experiments.modes import sample

Make = Callable[[], ConfigDict]


def meshes() -> list:
    return [devices.make_mesh(jax.devices()[:1]), devices.make_mesh()]


def test_samples_are_the_same_in_any_batch_and_on_any_devices(
    trained: tuple, params, all_devices: None
) -> None:
    experiment = build(trained[0])
    one, eight = meshes()
    results = []
    for mesh, batch_size in ((one, 12), (one, 5), (eight, 8)):
        sample_fn = make_sample_fn(experiment, mesh, num_steps=0)
        placed = jax.device_put(params, devices.replicated(mesh))
        results.append(draw(sample_fn, placed, 0, 12, batch_size, mesh)[0])
    assert results[0].shape == (12, 8, 8, 1) and results[0].std() > 10
    for other in results[1:]:
        assert abs(other.astype(int) - results[0].astype(int)).max() <= 1
    # And a range is a part of the whole.
    sample_fn = make_sample_fn(experiment, one, num_steps=0)
    part = draw(sample_fn, params_on(params, one), 5, 9, 4, one)[0]
    assert abs(part.astype(int) - results[0][5:9].astype(int)).max() <= 1


def params_on(params, mesh):
    return jax.device_put(params, devices.replicated(mesh))


def test_sampling_writes_what_it_says(trained: tuple) -> None:
    config, workdir = trained
    results = sample(build(config), workdir)
    images = np.load(workdir / "samples" / "samples.npz")["arr_0"]
    assert images.shape == (12, 8, 8, 1) and images.dtype == np.uint8
    for name in results["files"]:
        assert (workdir / name).is_file()
    assert Image.open(workdir / "samples" / "progress.png").width > 0
    section = json.loads((workdir / "results.json").read_text())["sample"]
    assert section["not_finite"] == 0 and section["weights"] == "ema"
    assert section["selected_on"] == "nothing"
    assert section["num_images"] == 12 and section["checkpoint_step"] == config.train.num_steps
    provenance = section["provenance"]
    assert provenance["config"]["train"]["num_steps"] == config.train.num_steps
    assert {"commit", "versions", "hardware", "seed", "date"} <= set(provenance)
    assert provenance["precision"]["likelihoods and distances"] == "highest"
    again = sample(build(config), workdir)  # which draws nothing
    assert all(again[name] == value for name, value in results.items())


def test_progress_ends_in_the_sample(trained: tuple, params) -> None:
    experiment = build(trained[0])
    mesh = meshes()[0]
    sample_fn = make_sample_fn(experiment, mesh, num_steps=0, record=(7, 3, 0))
    samples, progress, finite, evaluations = draw(sample_fn, params_on(params, mesh), 0, 4, 4, mesh)
    np.testing.assert_array_equal(progress[-1], samples)
    assert progress.shape == (3, 4, 8, 8, 1) and finite.all() and len(finite) == 4
    assert evaluations.tolist() == [8] * 4


def test_what_is_not_finite_is_counted_drawn_grey_and_said(
    trained: tuple, params, tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
    """One bad value is enough, also where its pixel is later clipped, or on the way."""
    config, workdir = trained
    end_well = walk.end

    def spoilt(state):
        found = end_well(state)
        x_0 = found.x_0.at[1, 2, 3, 0].set(jnp.nan).at[5, 0, 0, 0].set(jnp.inf)
        progress = found.progress
        if len(progress):
            progress = progress.at[0, 6, 1, 1, 0].set(-jnp.inf)
        return found._replace(x_0=x_0, progress=progress)

    monkeypatch.setattr(walk, "end", spoilt)
    experiment, mesh = build(config), meshes()[0]
    for record, bad in (((), [1, 5]), ((7, 0), [1, 5, 6])):
        sample_fn = make_sample_fn(experiment, mesh, num_steps=0, record=record)
        drawn = draw(sample_fn, params_on(params, mesh), 0, 8, 8, mesh)
        assert np.flatnonzero(~drawn.finite).tolist() == bad and drawn.not_finite == len(bad)
    assert drawn.samples[1, 2, 3, 0] == 128 and drawn.samples[5, 0, 0, 0] == 255
    capsys.readouterr()
    # Two batches of 8, of the second of which 4 are wanted: bad are 1, 5 and 9.
    drawn = shutil.ignore_patterns("evaluation", "samples")
    run = shutil.copytree(workdir, tmp_path / "run", ignore=drawn)
    assert sample(experiment, run)["not_finite"] == 3
    assert json.loads((run / "results.json").read_text())["sample"]["not_finite"] == 3
    assert "WARNING   3 of 12 samples are not finite" in capsys.readouterr().out
    state = TrainState((), (), params_on(params, mesh), (), ())
    make_preview(experiment, tmp_path / "previews", mesh)(3, state)
    assert (tmp_path / "previews" / "00000003.png").is_file()
    assert "WARNING" in capsys.readouterr().out


def test_fewer_steps_are_a_respaced_chain(trained: tuple, params) -> None:
    experiment, mesh = build(trained[0]), meshes()[0]
    few = draw(
        make_sample_fn(experiment, mesh, num_steps=3), params_on(params, mesh), 0, 4, 4, mesh
    )[0]
    full = draw(
        make_sample_fn(experiment, mesh, num_steps=0), params_on(params, mesh), 0, 4, 4, mesh
    )[0]
    assert few.shape == full.shape and (few != full).any()


def test_either_fixed_variance_reads_the_same_checkpoint(trained: tuple) -> None:
    config, workdir = trained
    other = ConfigDict(config.to_dict())
    other.variance = ConfigDict(dict(name="fixed_small"))
    assert load_ema(build(other), workdir, meshes()[0]).step == config.train.num_steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parameterization", dict(name="v")),
        ("schedule", dict(name="cosine", num_timesteps=8)),
        ("variance", dict(name="learned")),
    ],
)
def test_a_checkpoint_is_not_misread_under_another_model(trained: tuple, field, value) -> None:
    config, workdir = trained
    other = ConfigDict(config.to_dict())
    other[field] = ConfigDict(value)
    if field == "variance":
        other.loss = ConfigDict(dict(name="vlb"))
        other.train.preview_num_steps = 0
    with pytest.raises(ValueError, match=rf"{field}\.\w+: .* then, .* now"):
        load_ema(build(other), workdir, meshes()[0])


def test_nothing_to_sample_from_is_said_so(trained: tuple, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint yet. Train first"):
        sample(build(trained[0]), tmp_path)


def test_more_images_than_there_are_is_warned_of(
    trained: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = trained
    other = ConfigDict(config.to_dict())
    for num_images, warned in ((10_000, True), (300, False), (0, False)):
        other.evaluate.num_images = num_images
        check(build(other))
        said = " ".join(capsys.readouterr().out.split())
        assert ("has 300 images: all of them are taken" in said) == warned


def test_images_survive_the_way_to_the_model_and_back() -> None:
    from experiments import images

    levels = jnp.arange(256, dtype=jnp.uint8)
    x = images.to_model(levels)
    assert float(x.min()) == -1 and float(x.max()) == 1 and x.dtype == jnp.float32
    np.testing.assert_array_equal(images.to_uint8(x), levels)
    np.testing.assert_array_equal(images.to_uint8(jnp.array([-7.0, 9.0])), [0, 255])
    half = jnp.array([0.5 / 127.5 - 1, 0.49 / 127.5 - 1])
    np.testing.assert_array_equal(images.to_uint8(half), [1, 0])


@pytest.mark.parametrize("num_levels", [2, 17, 100, 256])
def test_levels_survive_the_way_to_the_model_and_back(num_levels: int) -> None:
    from experiments import images

    number = np.arange(num_levels)
    stored = np.floor(number * 255 / (num_levels - 1) + 0.5).astype(np.uint8)
    x = images.to_model(jnp.asarray(stored), num_levels)
    np.testing.assert_allclose(x, 2 * number / (num_levels - 1) - 1, atol=1e-6)
    near = x + 0.9 / (num_levels - 1) * jnp.array([[-1.0], [0.0], [1.0]])
    for way, expected in (("round", stored), ("floor", np.append(0, stored[:-1]))):
        back = images.QUANTIZE[way](near, num_levels)
        np.testing.assert_array_equal(back[0], expected)
        np.testing.assert_array_equal(back[2], stored)
    np.testing.assert_allclose(images.QUANTIZE["none"](x, num_levels), stored, atol=0.51)


def test_the_digits_have_the_levels_that_they_name(trained: tuple) -> None:

    dataset = build(trained[0]).dataset
    stored = np.unique(load_in_memory(dataset.open("train")).images)
    assert stored.size == dataset.num_levels == 17
    expected = np.floor(np.arange(17) * 255 / 16 + 0.5)
    np.testing.assert_array_equal(stored, expected)


def test_a_grid_shows_every_image_in_its_place(tmp_path: pathlib.Path) -> None:
    from experiments import images

    pictures = (
        np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8) * 50
    )
    images.save(tmp_path / "grid.png", images.grid(pictures, columns=3))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == ((2 * 9 - 1) * 6, (3 * 9 - 1) * 6, 3)
    for i in range(5):
        row, column = i // 3 * 9 * 6, i % 3 * 9 * 6
        assert (grid[row : row + 48, column : column + 48] == i * 50).all()
    assert (grid[54:102, 108:] == 128).all()


def test_a_config_older_than_a_field_gets_its_default(trained: tuple, tmp_path) -> None:

    from experiments.configs import saved

    content = config_to_dict(trained[0])
    del content["checkpoint"], content["evaluate"]["num_strata"], content["train"]["validate_every"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = saved.get_config(str(tmp_path))
    assert config.checkpoint == "latest" and config.evaluate.num_strata == 50
    assert config.train.validate_every == 0
    assert config.train.num_steps == trained[0].train.num_steps
    build(config)
