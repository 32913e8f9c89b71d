"""A training goes on with all the images that it began with, or says what is another."""

import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import hooks, state
from experiments.build import build
from experiments.data import image_folder
from experiments.data.captions import Captioned, make_tokenizer
from experiments.data.dataset import InMemory, Subset, contents, load_in_memory
from experiments.data.datasets import DATASETS
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments import synthetic

Make = Callable[..., ConfigDict]


def images() -> InMemory:
    draw = np.random.default_rng(0)
    found = draw.integers(0, 256, (50, 4, 4, 1)).astype(np.uint8)
    return InMemory(found, draw.integers(0, 10, 50).astype(np.int32))


@pytest.mark.parametrize("index", [0, 7, 23, 49])
def test_every_pixel_and_label_in_memory_counts(index: int) -> None:
    before = contents(images())
    assert before == contents(images()) and set(before) == {"bytes"}
    pixel, label, order = images(), images(), images()
    pixel.images[index, 2, 1] ^= 1
    label.labels[index] += 1
    order.images = np.roll(order.images, 1, axis=0)
    assert before not in [contents(source) for source in (pixel, label, order)]
    assert contents(InMemory(np.asfortranarray(images().images), images().labels)) == before


def write_pictures(folder: pathlib.Path) -> None:
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.bmp")
        os.utime(folder / f"{i}.bmp", (1e9, 1e9))


def seen(path: pathlib.Path) -> dict[str, str]:
    return contents(image_folder.image_folder(str(path), 8, test_fraction=0).open("train"))


def test_files_are_told_apart_by_name_size_and_time(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder)
    before = seen(folder)
    assert set(before) == {"files", "times"} and seen(folder) == before
    again = shutil.copytree(folder, tmp_path / "again")  # with their times
    assert seen(again) == before
    os.utime(again / "3.bmp")
    assert seen(again)["files"] == before["files"] and seen(again)["times"] != before["times"]
    (again / "3.bmp").rename(again / "x.bmp")
    assert seen(again)["files"] != before["files"]
    (folder / "5.bmp").write_bytes((folder / "5.bmp").read_bytes() + b"\0")
    assert seen(folder)["files"] != before["files"]


def test_in_an_archive_every_byte_counts(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "pictures")

    def packed(name: str) -> pathlib.Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted((tmp_path / "pictures").iterdir()):
                archive.write(path, path.name)
        return tmp_path / name

    before = seen(packed("one.zip"))
    content = bytearray((tmp_path / "pictures" / "4.bmp").read_bytes())
    content[-1] ^= 1
    (tmp_path / "pictures" / "4.bmp").write_bytes(content)
    os.utime(tmp_path / "pictures" / "4.bmp", (1e9, 1e9))
    after = seen(packed("two.zip"))
    assert after["files"] != before["files"] and after["times"] == before["times"]


def test_what_is_held_out_counts_and_captions_change_nothing(tmp_path: pathlib.Path) -> None:
    write_pictures(tmp_path / "pictures")
    source = image_folder.image_folder(str(tmp_path / "pictures"), 8, test_fraction=0).open("train")
    first, second = (Subset(source, np.arange(i, i + 3)) for i in (0, 1))
    assert contents(first) != contents(second)
    assert contents(Captioned(source, make_tokenizer("a", 4))) == contents(source)


def test_every_data_set_is_known_by_its_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = synthetic.prepare_all(tmp_path, monkeypatch)
    for name, make in DATASETS.items():
        source = make(**arguments[name]).open("train")
        assert {"files", "times"} == set(contents(source)), name
        assert contents(load_in_memory(source)).keys() == {"bytes"}


def test_one_other_image_among_many_is_refused(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of the few that the fingerprint looks at."""
    config = plain()
    config.train.num_steps = 4
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    config.train.num_steps = 6
    experiment = build(config)
    source = load_in_memory(experiment.open("train"))
    source.images[5] = 255 - source.images[5]
    changed = experiment._replace(open=lambda split: source)
    assert state.facts(changed, source)["fingerprint"] == state.facts(
        experiment, experiment.open("train")
    )["fingerprint"]  # fmt: skip
    with pytest.raises(ValueError, match="trained on other images: the pixels or labels"):
        hooks.train_with_hooks(changed, tmp_path)
    assert hooks.train_with_hooks(experiment, tmp_path) is Outcome.FINISHED


def test_a_damaged_picture_can_be_taken_out_and_the_training_goes_on(
    plain: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """As the message about the picture says; checkpoints and results then say so."""
    config, pictures, run = plain(), tmp_path / "pictures", tmp_path / "run"
    write_pictures(pictures)
    config.data = ConfigDict(
        dict(
            **dict(name="image_folder", path=str(pictures), image_size=8, test_fraction=0.0),
            **dict(channels=1, background="white", num_classes=0),
        )
    )
    config.loader.in_memory, config.train.num_steps = False, 4
    assert hooks.train_with_hooks(build(config), run) is Outcome.FINISHED
    config.train.num_steps = 8
    spoilt = sorted(pictures.iterdir())[1]
    spoilt.write_bytes(spoilt.read_bytes()[:20])
    with pytest.raises(ValueError, match="--continue_with_new_data"):
        hooks.train_with_hooks(build(config), run)
    spoilt.unlink()
    with pytest.raises(ValueError, match="trained on other images.*--continue_with_new_data"):
        hooks.train_with_hooks(build(config), run)
    start = state.Start(new_data=True)
    assert hooks.train_with_hooks(build(config), run, start) is Outcome.FINISHED
    assert "continued with other images from step 4" in " ".join(capsys.readouterr().out.split())
    with Checkpoints(run) as checkpoints:
        kept = checkpoints.meta(8)["continued"]
    assert [each["step"] for each in kept] == [4] and "fingerprint" in kept[0]["other_images"]
    assert read_results(run)["train"]["continued"] == kept
    config.train.num_steps = 10  # from then on these are its images
    assert hooks.train_with_hooks(build(config), run) is Outcome.FINISHED


def test_other_times_and_another_commit_are_told(
    plain: Make,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = plain()
    config.ema_warmup = 0.75  # or the average of so few steps would be warned of
    config.loader.in_memory = False
    config.train.num_steps = 4
    copied = shutil.copytree(config.data.data_dir, tmp_path / "data")
    config.data.data_dir = str(copied)
    monkeypatch.setattr(state, "git_commit", lambda: "abc")
    assert hooks.train_with_hooks(build(config), tmp_path / "run") is Outcome.FINISHED
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.meta(4)["commit"] == "abc"
    capsys.readouterr()
    config.train.num_steps = 6
    assert hooks.train_with_hooks(build(config), tmp_path / "run") is Outcome.FINISHED
    assert "WARNING" not in capsys.readouterr().out
    for path in copied.rglob("*"):
        os.utime(path)
    monkeypatch.setattr(state, "git_commit", lambda: "def")
    config.train.num_steps = 8
    assert hooks.train_with_hooks(build(config), tmp_path / "run") is Outcome.FINISHED
    said = " ".join(capsys.readouterr().out.split())
    assert "commit abc then, def now" in said and "have been written again" in said
