"""Own pictures: what is read of them, and the config that asks for nothing but where they are."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import hooks
from experiments.build import build
from experiments.configs import by_size, image_folder, ranges
from experiments.data import image_folder as own
from experiments.data.dataset import load_in_memory
from experiments.data.image_folder import image_folder as make
from experiments.workdir.config import config_from_dict, config_to_dict
from experiments.workdir.outcome import Outcome


def decode(path: str, image_size: int, **options: Any) -> np.ndarray:
    return own.decode(path, path, image_size=image_size, **options)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_formats_and_modes_are_read(suffix: str, mode: str, tmp_path: pathlib.Path) -> None:
    smooth = Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8), (40, 1)))
    path = tmp_path / f"a.{suffix}"
    smooth = smooth.convert("RGB")
    picture = smooth.quantize(64) if mode == "P" else smooth.convert(mode)
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = decode(str(path), 30)
    assert found.shape == (30, 30, 3)
    assert np.abs(found[15].astype(int) - np.arange(0, 240, 8)[:, None]).max() <= 3
    assert decode(str(path), 30, channels=1).shape == (30, 30, 1)


def test_of_an_animation_the_first_picture_is_taken(tmp_path: pathlib.Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(str(tmp_path / "a.gif"), 16)[8, 8], (255, 0, 0))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_what_is_transparent_shows_the_background(background, level, tmp_path) -> None:
    """Not the colour that the file hides there; half transparent is half of each."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 4:, 3] = 255
    pixels[:4, :4, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), 8, background=background).astype(int)
    np.testing.assert_array_equal(found[6, 1], (level,) * 3)
    np.testing.assert_array_equal(found[6, 6], (200, 0, 0))
    half = (np.array([200, 0, 0]) * 128 + level * 127) / 255
    np.testing.assert_allclose(found[1, 1], half, atol=1)


def test_16_bits_become_8(tmp_path: pathlib.Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), 32, channels=1)
    np.testing.assert_array_equal(found[0, :, 0], np.rint(ramp[0] / 257.0))
    Image.fromarray(np.full((8, 8), 3.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif cannot be used \(mode F holds 3.5 to 3.5\)"):
        decode(str(tmp_path / "a.tif"), 8)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.9])
def test_the_share_that_is_held_out_is_the_one_asked_for(fraction: float) -> None:
    count = 4000
    held_out = np.mean([own.is_test(f"{i}.png", fraction) for i in range(count)])
    assert abs(held_out - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / count)


def test_folders_are_classes_where_they_are_asked_for(tmp_path: pathlib.Path) -> None:
    for name in ("cats/a.png", "cats/deep/b.png", "dogs/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(NOISE).save(tmp_path / name)
    dataset = make(str(tmp_path), 8, test_fraction=0.0, num_classes=2)
    assert dataset.num_classes == 2
    assert [int(record["label"]) for record in dataset.open("train")] == [0, 0, 1]
    with pytest.raises(ValueError, match="num_classes = 3, but .* 2 classes: 'cats', 'dogs'. Set"):
        make(str(tmp_path), 8, test_fraction=0.0, num_classes=3).open("train")
    plain = make(str(tmp_path), 8, test_fraction=0.0)
    assert plain.num_classes is None and {int(r["label"]) for r in plain.open("train")} == {0}


def test_all_that_cannot_be_read_is_named_at_once(tmp_path: pathlib.Path) -> None:
    for name in ("b.png", "d.png"):
        Image.fromarray(NOISE).save(tmp_path / name)
    for name in ("a.png", "c.png", "e.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    source = make(str(tmp_path), 8, test_fraction=0.0).open("train")
    with pytest.raises(ValueError, match=r"(?s)3 of 5 images .*a.png.*c.png.*e.jpg"):
        load_in_memory(source)


def test_a_path_and_a_size_are_all_that_a_config_needs(tmp_path: pathlib.Path) -> None:
    for size in (8, 20, 32, 48, 64, 100, 128, 256):
        config = image_folder.get_config()
        config.data.path, config.data.image_size = str(tmp_path), size
        config.model.num_blocks = 1  # every level is built, and half as long
        experiment = build(config)
        assert experiment.dataset.image_shape == (size, size, 3)
        assert config.model.channels is None  # what was handed in stays as it was
        saved = config_from_dict(config_to_dict(experiment.config))
        assert None not in [saved[f.split(".")[0]][f.split(".")[1]] for f in by_size.BY_SIZE]
        ranges.check(saved)
    paper = image_folder.get_config()
    paper.data.image_size = 256
    assert by_size.fill(paper).model.channel_multipliers == (1, 1, 2, 2, 4, 4)
    own = image_folder.get_config()
    own.data.image_size, own.model.channels, own.train.batch_size = 64, 32, 7
    filled = by_size.fill(own)
    assert (filled.model.channels, filled.train.batch_size) == (32, 7)
    with pytest.raises(ValueError, match="config.data.image_size = None: say how large"):
        by_size.fill(image_folder.get_config())


def test_own_pictures_train_and_few_of_them_are_told_of(
    plain: Callable[[], ConfigDict], tmp_path: pathlib.Path, capsys
) -> None:
    """Of mixed sizes, in grey, with an evaluation that asks for more images than there are."""
    rng = np.random.default_rng(1)
    for number in range(40):
        shape = (*rng.integers(9, 40, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / ".hidden.png").write_bytes(b"notes")
    config = image_folder.get_config()
    config.data.path, config.data.image_size = str(tmp_path), 8
    config.data.channels, config.data.test_fraction = 1, 0.2
    config.method, config.evaluate.metrics = plain().method, "baselines"
    config.train.num_steps = config.train.checkpoint_every = config.train.log_every = 10
    config.train.preview_every = config.train.preview_num_steps = 0
    experiment = build(config)
    from experiments import evaluate

    evaluate.check(experiment)
    assert hooks.train_with_hooks(experiment, tmp_path / "run") is Outcome.FINISHED
    said = " ".join(capsys.readouterr().out.split())
    test = len(experiment.dataset.open("test"))
    assert f"num_images = 1000, but the test split of 'image_folder' has {test} images" in said
    assert f"left out of {tmp_path}: 1 hidden (.hidden.png)" in said
    assert f"{40 - test} images, 10 steps of 128" in said
    assert "batch_size = 128 is more than there are images" in said and "images are few" in said
