"""Folders are classes by name and number, told, kept with the run and the same ever after."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import main, sample
from experiments.build import build
from experiments.configs import by_size, image_folder, saved
from experiments.data.dataset import fingerprint
from experiments.data.image_folder import image_folder as make
from experiments.drawing import requested_labels
from experiments.experiment import Experiment
from experiments.files.atomic import write_json
from experiments.workdir.config import config_to_dict, write_config
from experiments.workdir.origin import Loaded, Origin
from experiments.workdir.protocols import training_fields

TWELVE = [str(number) for number in range(12)]


def write(folder: pathlib.Path, classes: list[str], each: int = 2) -> pathlib.Path:
    """Pictures as bright as their class's place in the list."""
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.new("L", (4, 4), 10 * level).save(folder / name / f"{i}.png")
    return folder


def labels(source: Any) -> dict[int, int]:
    """Level of the pictures -> label."""
    return {int(record["image"][0, 0, 0]) // 10: int(record["label"]) for record in source}


def config_of(folder: pathlib.Path, num_classes: int, **model: Any) -> ConfigDict:
    config = image_folder.get_config()
    config.data.update(dict(path=str(folder), image_size=8, channels=1, num_classes=num_classes))
    config.data.test_fraction = 0.0
    config.model.update(dict(channels=8, norm_groups=4, channel_multipliers=(1,)) | model)
    return config


def built(config: ConfigDict) -> Experiment:
    return build(by_size.fill(config))


def old_style(config: ConfigDict) -> dict[str, Any]:
    """A config as runs saved it that kept no names."""
    content = config_to_dict(by_size.fill(config))
    for name in ("classes", "value_range"):
        del content["data"][name]
    return content


def test_numbers_are_in_their_order_and_words_in_the_alphabet(tmp_path: pathlib.Path) -> None:
    names = ["0", "2", "007", "10", "Zebra", "ant", "x10", "x2"]
    source = make(str(write(tmp_path, names)), 4, 0.0, 1, num_classes=8).open("train")
    assert labels(source) == {level: level for level in range(8)}


def test_a_run_keeps_its_names_and_its_numbers(tmp_path: pathlib.Path) -> None:
    """Whatever is there later; a class that it never had is refused."""
    folder, workdir = write(tmp_path / "pictures", ["1", "2", "10"]), tmp_path / "run"
    experiment = built(config_of(folder, 3))
    assert experiment.dataset.classes == experiment.config.data.classes == ("1", "2", "10")
    write_config(workdir, experiment.config)
    assert json.loads((workdir / "config.json").read_text())["data"]["classes"] == ["1", "2", "10"]
    for path in (folder / "1").iterdir():
        path.unlink()
    again = built(saved.get_config(str(workdir)))
    assert again.dataset.classes == ("1", "2", "10")
    assert labels(again.open("train")) == {1: 1, 2: 2}
    (folder / "10").rename(folder / "cats")
    with pytest.raises(ValueError, match=r"class 'cats', which is none of .*: '1', '2', '10'"):
        again.open("train")


def test_names_are_known_where_the_pictures_are_gone(tmp_path: pathlib.Path) -> None:
    folder, workdir = write(tmp_path / "pictures", ["cats", "dogs"]), tmp_path / "run"
    write_config(workdir, built(config_of(folder, 2, class_conditional=True)).config)
    folder.rename(tmp_path / "elsewhere")
    config = saved.get_config(str(workdir))
    config.sample.labels = "dogs"
    sample.check(built(config))
    assert built(config_of(folder, 2)).dataset.classes == ()  # and a new run begins all the same


def test_an_old_run_keeps_the_numbers_of_the_alphabet(tmp_path: pathlib.Path) -> None:
    """By its own config, and by the command that it was begun with; now it has names."""
    folder, workdir = write(tmp_path / "pictures", TWELVE), tmp_path / "run"
    write_json(workdir / "config.json", old_style(config_of(folder, 12)))
    alphabet = {level: sorted(TWELVE).index(name) for level, name in enumerate(TWELVE)}
    command = saved.with_classes_of(str(workdir), config_of(folder, 12))
    prints = set()
    for config in (saved.get_config(str(workdir)), command):
        experiment = built(config)
        assert labels(experiment.open("train")) == alphabet
        assert experiment.config.data.classes == tuple(sorted(TWELVE))
        prints.add(fingerprint("image_folder", experiment.open("train")))
    fresh = built(saved.with_classes_of(str(tmp_path / "none"), config_of(folder, 12)))
    assert labels(fresh.open("train")) == {level: level for level in range(12)}
    assert fingerprint("image_folder", fresh.open("train")) not in prints and len(prints) == 1


def test_a_config_without_the_new_fields_is_one_with_them(tmp_path: pathlib.Path) -> None:
    """For whoever compares runs: neither names nor a range that is not set make another model."""
    folder = write(tmp_path, ["a", "b"])
    for count in (0, 2):
        config = config_of(folder, count)
        now = config_to_dict(built(config).config)
        assert training_fields(old_style(config)) == training_fields(now)
    config.data.value_range = (0, 4095)
    assert training_fields(config_to_dict(config)) != training_fields(now)


def test_the_advice_on_the_number_of_classes_can_be_followed(tmp_path: pathlib.Path) -> None:
    """Wherever a number is proposed, it is taken; where none is, none would be."""
    layouts = {
        "two": ["a/1.png", "b/2.png"],
        "three": ["a/1.png", "b/x/2.png", "c/3.png"],
        "none": ["1.png", "2.png"],
        "one": ["a/1.png", "a/b/2.png"],
        "loose": ["a/1.png", "b/2.png", "3.png"],
    }
    proposed = {}
    for layout, names in layouts.items():
        for name in names:
            (tmp_path / layout / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / layout / name)
        with pytest.raises(ValueError, match=r"num_classes = 7, but.*0 for no labels") as error:
            built(config_of(tmp_path / layout, 7))
        proposed[layout] = [int(n) for n in re.findall(r"[Ss]et it to (\d+)", str(error.value))]
        for number in proposed[layout]:
            assert len(built(config_of(tmp_path / layout, number)).open("train")) == len(names)
    assert proposed == {"two": [2], "three": [3], "none": [0], "one": [0], "loose": [0]}
    with pytest.raises(ValueError, match=r"all lie in the folder 'a'"):
        built(config_of(tmp_path / "one", 7))
    with pytest.raises(ValueError, match=r"do not all have a class: 1 lie .*'3.png'"):
        built(config_of(tmp_path / "loose", 7))


def test_names_and_numbers_ask_for_classes(tmp_path: pathlib.Path) -> None:
    """What is one class's name and another's number is refused with what says either."""
    names = ["3", "4", "cats (old)", "größe", "red, green"]
    experiment = built(config_of(write(tmp_path, names), 5, class_conditional=True))
    for asked, numbers in {
        "cats (old)": [2],
        "(0, 1)": [0, 1],
        "#3,#4, #0": [3, 4, 0],
        "gro\u0308\u00dfe, 2": [3, 2],
        "red, green": [4],
        "red, green; 1; cats (old)": [4, 1, 2],
        "[größe]": [3],
    }.items():
        experiment.config.sample.labels = asked
        assert sample.requested(experiment).tolist() == numbers, asked
    listed = requested_labels(["größe", 2, np.int64(0)], experiment.method, names)
    assert listed.tolist() == [3, 2, 0]
    for asked in ("3", "cats (old), 3"):
        experiment.config.sample.labels = asked
        with pytest.raises(ValueError, match=r"'3', which is the name of class 0 .*#0 or #3"):
            sample.check(experiment)
    assert requested_labels([3, "#3"], experiment.method, names).tolist() == [3, 3]
    for asked in ("dogs", "0, dogs", "5", "#5", "grö", "red"):
        experiment.config.sample.labels = asked
        with pytest.raises(ValueError, match=r"or names such as 3, 4, cats \(old\), größe"):
            sample.check(experiment)


@pytest.mark.parametrize("asked", ["a/b", "../x", "größe", "cats, " * 40 + "cats"])
def test_samples_of_any_name_lie_in_one_folder(asked: str, tmp_path: pathlib.Path) -> None:
    folder = write(tmp_path / "pictures", ["cats", "größe"])
    config = config_of(folder, 2, class_conditional=True)
    config.sample.labels = asked
    origin = Origin("ema", "nothing")
    found = sample.folder_apart(built(config), tmp_path, Loaded(8, {}, origin))
    assert found.parent == tmp_path / "samples" and len(found.name) < 100
    config.sample.labels = "cats"
    assert sample.folder_apart(built(config), tmp_path, Loaded(8, {}, origin)) != found


def test_the_start_tells_them(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "few", ["1", "2", "10"])
    write(tmp_path / "many", [f"{number}" for number in range(130)], each=1)
    said = main.describe_start(built(config_of(tmp_path / "few", 3)))
    assert "classes   0 1, 1 2, 2 10" in said
    [line] = [
        w for w in main.describe_start(built(config_of(tmp_path / "many", 130))) if "130" in w
    ]
    assert line.startswith("classes   0 0, 1 1") and line.endswith(" 99 99, ... (130 in all)")
    plain = main.describe_start(built(config_of(tmp_path / "few", 0)))
    assert not [line for line in plain if line.startswith("classes")]


@pytest.mark.parametrize("wrong", [(0,), (1, 1), (0, 1, 2)])
def test_a_range_that_is_none_is_refused(wrong: tuple, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"config\.data\.value_range = .*"):
        config = config_of(write(tmp_path, ["a", "b"]), 0)
        config.data.value_range = wrong
        built(config)


def test_a_range_is_heeded(tmp_path: pathlib.Path) -> None:
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "a.png")
    config = config_of(tmp_path, 0)
    assert built(config).open("train")[0]["image"].max() == 16
    assert any("(0,4095)" in line for line in built(config).open("train").remarks())
    config.data.value_range = (0, 4095)
    assert built(config).open("train")[0]["image"].min() == 255
