"""What messages advise: their commands run, and the fields and values that they name exist."""

import ast
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from experiments import main, modes
from experiments.build import build
from experiments.command_line import load_config
from experiments.configs import image_folder
from experiments.configs.ranges import FIELDS, SECTIONS
from experiments.data import digits, prepared
from experiments.workdir.config import read_config
from tests.experiments import programs

Make = Callable[[], ConfigDict]
ROOT = pathlib.Path(__file__).parents[2]
NAMED = re.compile(r"\bconfig\.(?!json)([a-z_]+(?:\.[a-z_]+)*)(?: = ([^\s,;:)]+))?")
OPTION = re.compile(r"(?<![\w-])--(?!config|name=value)([a-z_]+)\b")
OF_OTHERS = {"revision", "local", "logdir", "help"}  # `hf download`, tensorboard, argparse


def texts() -> Iterator[tuple[pathlib.Path, str]]:
    """Every string of the programs, with {} for what an f-string fills in."""
    for path in [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                yield path, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def test_a_field_that_a_message_names_exists_and_may_hold_what_it_says() -> None:
    sections = {field.rpartition(".")[0] for field in FIELDS} | SECTIONS
    seen = 0
    for path, text in texts():
        for field, value in NAMED.findall(text):
            seen += 1
            assert field in FIELDS or field in sections, (path, text)
            if field in FIELDS and value and "{" not in value:
                said = ast.literal_eval(value.rstrip("."))
                assert FIELDS[field].refusal(said) is None, (path, text)
    assert seen > 100


def test_an_option_that_a_message_names_is_one_of_some_program() -> None:
    sources = (ROOT / "experiments").rglob("*.py"), (ROOT / "launch").rglob("*.py")
    code = "\n".join(path.read_text() for paths in sources for path in paths)
    defined = set(re.findall(r'"--(\w+)"', code)) | set(flags.FLAGS)
    defined |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', code)) | OF_OTHERS
    for path, text in texts():
        for name in OPTION.findall(text) if "launch" not in path.parts else ():
            assert name in defined, (path, name, text)


@pytest.mark.slow
def test_what_a_training_ends_with_can_be_run(
    plain_run: tuple[ConfigDict, pathlib.Path],
    tmp_path: pathlib.Path,
    quick_classifier: None,
    capsys,
) -> None:
    """Wherever it is: a shell would take this name apart."""
    config, workdir = plain_run
    workdir = shutil.copytree(workdir, tmp_path / "it's a $HOME run")
    said = "\n".join(main.describe_end(build(config), workdir, 1.0))
    found = programs.commands(said)
    assert [command[0] for command in found] == ["experiments.main"] * 2 + ["launch.report"]
    assert [programs.run(command) for command in found] == [0, 0, 0], capsys.readouterr().err
    [folder] = [path for path in (workdir / "samples").iterdir() if path.is_dir()]
    with np.load(next(folder.glob("*.npz"))) as drawn:  # others than the run's own
        assert drawn["indices"].tolist() == list(range(12, 24))


def test_what_cannot_be_measured_is_not_proposed(tmp_path: pathlib.Path, monkeypatch) -> None:
    """Pictures without labels, and no Inception."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPM_INCEPTION_WEIGHTS", raising=False)
    rng = np.random.default_rng(0)
    for folder in "ab":
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for number in range(30):
            picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            picture.save(tmp_path / "pictures" / folder / f"{number}.png")
    config = image_folder.get_config()
    config.data.path, config.data.image_size = str(tmp_path / "pictures"), 8
    config.data.test_fraction = 0.3
    config.model.channels, config.model.norm_groups = 8, 4
    proposed = [
        " ".join(main.next_commands(build(config), tmp_path)) for config.data.num_classes in (0, 2)
    ]
    assert ["metrics=samples" in text for text in proposed] == [False, True]
    assert all("--mode=sample --seeds=64-127" in text for text in proposed)


def test_a_validation_that_cannot_be_measured_is_refused_before_the_training(
    tiny: Make, tmp_path: pathlib.Path, monkeypatch
) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    config = tiny()
    config.train.validate_every, config.train.validate_with = 4, "samples"
    modes.checked(config, ("train",))
    config.evaluate.extractor = "inception"
    with pytest.raises(FileNotFoundError, match="need the Inception weights"):
        modes.checked(config, ("train",))


def test_where_no_run_is_the_command_that_makes_one_is_understood(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "my run"
    with pytest.raises(FileNotFoundError, match="holds no run") as missing:
        read_config(place)
    [[module, *arguments]] = programs.commands(str(missing.value))
    assert module == "experiments.main" and f"--workdir={place}" in arguments
    load_config([word for word in arguments if word.startswith("--config")])


def test_how_data_are_prepared_can_be_run(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "my data"
    command = prepared.prepare_command("digits", str(place))
    assert [programs.run(each) for each in programs.commands(command)] == [0]
    assert len(digits.digits(str(place)).open("test")) == 300


def test_a_vae_is_advised_for_the_data_that_latents_are_of(tiny: Make, tmp_path) -> None:
    config = tiny()
    place = tmp_path / "my vae"
    config.encoder = ConfigDict(dict(name="vae", workdir=str(place)))
    with pytest.raises(ValueError, match="holds no trained VAE") as missing:
        build(config)
    [[_, *arguments]] = programs.commands(str(missing.value))
    assert arguments[-1] == f"--workdir={place}"
    advised = load_config([word for word in arguments if word.startswith("--config")])
    assert advised.method.name == "vae" and advised.data.name == config.data.name


def test_a_stopped_plan_says_that_it_begins_again(monkeypatch, capsys) -> None:
    from experiments import console

    monkeypatch.setattr(main, "plan", lambda *_: None)
    monkeypatch.setattr(console._watch, "then", console.CONTINUES)
    assert programs.run_main("--config=digits:eps_simple", "--mode=plan") == 0
    assert (console._watch.doing, console._watch.then) == ("planning", console.AGAIN)
