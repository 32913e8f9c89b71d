"""A model that is told names: from a font to samples of prompts, in the program and in Python."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from experiments import api, devices, images, main, train
from experiments.arguments import captions_of
from experiments.build import build
from experiments.configs import text_emoji, vae_emoji
from experiments.data import emoji
from experiments.drawing import asked_for, prompts_of, remarks_on_prompts, requested
from experiments.figures import page
from experiments.files.atomic import read_json
from experiments.modes import checked
from experiments.state import load_ema
from experiments.workdir.outcome import Outcome
from tests.experiments import emoji_font, modes, programs

Make = Callable[[], ConfigDict]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("emoji")
    emoji.prepare(str(emoji_font.small(folder / "small.ttf")), str(folder))
    return folder


def attending(config: ConfigDict, heights: tuple[int, ...]) -> None:
    """Puts the smallest U-Net in, whose blocks of those heights attend to the words."""
    config.model = text_emoji.get_config().model
    config.model.update(dict(channels=8, norm_groups=4, channel_multipliers=(1,)))
    config.model.update(dict(num_blocks=1, num_heads=2, dropout=0.0))
    config.model.attention_resolutions = ()
    config.model.cross_attention_resolutions = heights


@pytest.fixture(scope="module")
def told(prepared: pathlib.Path, tiny: Make) -> Make:
    """Makes a config of two convolutions on pixels that are told names."""
    tiny()  # its network has a name

    def make() -> ConfigDict:
        config = text_emoji.get_config()
        config.data.data_dir = str(prepared)
        config.encoder = ConfigDict(dict(name="pixels"))
        config.schedule = ConfigDict(
            dict(name="linear", num_timesteps=8, beta_start=0.02, beta_end=0.8)
        )
        config.text.update(dict(width=8, depth=1, num_heads=2, length=8))
        config.model = ConfigDict(dict(name="small", channels=8, class_conditional=False))
        config.optimizer.update(dict(warmup_steps=2, cosine_steps=0))
        config.train.update(dict(batch_size=8, num_steps=4, steps_per_call=2, log_every=2))
        config.train.update(dict(checkpoint_every=4, preview_every=0, preview_num_steps=4))
        config.sample.update(dict(num_images=6, batch_size=8, num_steps=4, prompts=""))
        config.sample.update(dict(progress_images=2))
        config.figures.update(dict(names="prompts"))
        return config

    return make


@pytest.fixture(scope="module")
def run(told: Make, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("text")
    assert train.train(build(told()), workdir) is Outcome.FINISHED
    return workdir


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> api.Model:
    """With parameters for which words matter."""
    found = experiments.load(run)
    moved = jax.tree.map(lambda p: np.asarray(p) + 0.1, found.params)
    found.params = jax.device_put(moved, devices.replicated(devices.make_mesh()))
    return found


def test_the_words_of_the_train_split_are_in_the_config(
    run: pathlib.Path, prepared: pathlib.Path
) -> None:
    words = read_json(run / "config.json")["text"]["vocabulary"].split()
    source: Any = emoji.emoji(str(prepared)).open("train")
    texts = " ".join(source.text(i) for i in range(len(source)))
    assert {"grinning", "face"} <= set(words)
    assert all(word in texts for word in words)


def test_words_named_alone_are_those_of_the_captions(told: Make) -> None:
    config = told()
    config.text = ConfigDict(dict(name="words"))
    text = build(config).config.text
    assert text.name == "words" and text.vocabulary == build(told()).config.text.vocabulary


def test_a_training_goes_on_with_its_own_words(told: Make, run: pathlib.Path) -> None:
    """The vocabulary is found again, and is the same."""
    config = told()
    before = read_json(run / "config.json")["text"]
    assert build(config).config.text.to_dict() == before


def test_captions_are_what_it_is_told_in_training(told: Make) -> None:
    experiment = build(told())
    source: Any = experiment.open("train")
    named: Any = experiment.dataset.open("train")
    rows = experiment.method.tokenizer.rows([named.text(0), named.text(3)])
    np.testing.assert_array_equal(source[0]["label"], rows[0])
    np.testing.assert_array_equal(source[3]["label"], rows[1])
    assert named[0]["label"].shape == ()  # classifiers of features still learn the groups


def test_a_sample_is_a_function_of_its_key_and_prompt(model: api.Model) -> None:
    alone = model.sample(prompts=["grinning face"])
    several = model.sample(prompts=["grinning face", "thumbs up sign", "grinning face"])
    assert alone.shape == (1, 32, 32, 3) and several.shape[0] == 3
    np.testing.assert_array_equal(alone[0], several[0])
    assert not np.array_equal(several[1], model.sample(3, prompts=["grinning face"])[1])
    assert not np.array_equal(several, model.sample(3))
    np.testing.assert_array_equal(model.sample(prompts="grinning face"), alone)


def test_guidance_of_1_is_the_conditional_model_and_of_0_the_other(model: api.Model) -> None:
    prompts = ["grinning face", "thumbs up sign"]
    unconditional = model.sample(2, guidance=1.0)
    np.testing.assert_array_equal(model.sample(prompts=prompts, guidance=0.0), unconditional)
    one, three = (model.sample(prompts=prompts, guidance=g) for g in (1.0, 3.0))
    assert not np.array_equal(one, three)


def test_prompts_of_the_command_line(told: Make, run: pathlib.Path) -> None:
    config = told()
    config.sample.prompts = "grinning face,thumbs up sign"
    experiment = build(config)
    rows = requested(experiment)
    assert rows.shape == (2, 8) and rows[0, 0] == rows[1, 0] == 1
    results = modes.sample(experiment, run)
    assert results["prompts"] == "grinning face,thumbs up sign"
    told_of = read_json(run / "samples" / "prompts.json")
    assert told_of["0"] == told_of["4"] == "grinning face" and told_of["5"] == "thumbs up sign"
    with np.load(run / "samples" / "samples.npz") as found:
        prompts = ["grinning face", "thumbs up sign"]
        drawn = experiments.load(run).sample(6, steps=4, prompts=prompts)
        np.testing.assert_array_equal(found["arr_0"], drawn)


@pytest.mark.parametrize(
    ("arguments", "indices"),
    [
        ((), [0, 1]),
        (("--config.sample.num_images=5",), [0, 1, 2, 3, 4]),
        (("--seeds=7,9",), [7, 9]),
    ],
)
def test_as_many_samples_as_prompts_each_under_its_own(
    arguments: tuple[str, ...], indices: list[int], run: pathlib.Path, tmp_path, capsys
) -> None:
    out, prompts = tmp_path / "out", ["grinning face", "thumbs up sign"]
    wanted = f"--config.sample.prompts={','.join(prompts)}"
    program = ("--mode=sample", f"--workdir={run}", f"--out={out}", wanted, *arguments)
    assert programs.run_main(*program) == 0
    said = capsys.readouterr().out
    told = [prompts[index % 2] for index in indices]
    for index, prompt in zip(indices, told, strict=True):
        assert f"sample    {index}: {prompt}\n" in said
    with np.load(next(out.glob("*.npz"))) as found:
        assert found["indices"].tolist() == indices
        expected = images.grid(images.captioned(found["arr_0"], told), 2)
    np.testing.assert_array_equal(images.load(out / "samples.png"), expected)


@pytest.mark.parametrize("mode", ["sample", "figures"])
def test_unknown_words_are_told_once_in_every_mode(
    mode: str, run: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    prompts = "--config.sample.prompts=qwertz face,$x$ face;thumbs"
    program = (f"--mode={mode}", f"--workdir={run}", prompts, f"--out={tmp_path / 'out'}")
    assert programs.run_main(*program) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("'qwertz face,$x$ face': qwertz, x not known, and left out") == 1


@pytest.mark.parametrize("mode", ["sample", "figures"])
@pytest.mark.parametrize("prompts", [" ", "!!!", ",", "face;..."])
def test_a_prompt_without_a_word_is_refused(told: Make, mode: str, prompts: str) -> None:
    config = told()
    config.sample.prompts = prompts
    with pytest.raises(ValueError, match="there is no word in the prompt"):
        checked(config, (mode,))


def test_an_emoji_asks_for_what_its_name_does(told: Make) -> None:
    names = ["grinning face", "thumbs up sign, medium skin tone"]
    config = told()
    config.sample.prompts = "😀,👍🏽"
    experiment = build(config)
    rows, kept = requested(experiment), asked_for(experiment)
    np.testing.assert_array_equal(rows, captions_of(experiment, ["😀", "👍🏽"]))
    np.testing.assert_array_equal(rows, captions_of(experiment, names))
    config.sample.prompts = "; ".join(names)
    np.testing.assert_array_equal(rows, requested(build(config)))
    assert kept != {"labels": "all", "prompts": "😀,👍🏽"}  # under which are older pictures of none


def test_what_a_training_on_names_ends_with_can_be_run(
    told: Make, run: pathlib.Path, capsys
) -> None:
    proposed = main.next_commands(build(told()), run)
    assert "--config.sample.prompts=" in proposed[0]
    [command] = programs.commands(proposed[0])
    assert programs.run(command) == 0
    assert re.search(r"^sample    0: \w.*\nsampled   1 images", capsys.readouterr().out, re.M)


def test_the_captions_of_a_split_stand_for_prompts(told: Make, model: api.Model) -> None:
    config = told()
    config.sample.prompts = "@test"
    experiment = build(config)
    source: Any = experiment.dataset.open("test")
    assert prompts_of(experiment) == [source.text(i) for i in range(len(source))]
    assert not remarks_on_prompts(experiment)
    config.text.vocabulary = "grinning"
    [told_of] = remarks_on_prompts(build(config))
    wordless = sum("grinning" not in text.split() for text in prompts_of(experiment))
    assert f" {wordless} of {len(source)} captions of @test" in told_of and wordless
    python = model.sample(3, prompts="@test")
    np.testing.assert_array_equal(python, model.sample(3, prompts=prompts_of(experiment)[:3]))
    config.sample.prompts = "@valid"
    with pytest.raises(ValueError, match="no split 'valid'"):
        checked(config, ("sample",))


def test_no_prompt_is_no_caption(told: Make) -> None:
    experiment = build(told())
    np.testing.assert_array_equal(requested(experiment), [[1, 0, 0, 0, 0, 0, 0, 0]])
    config = told()
    config.text.dropout, config.sample.guidance_scale = 0.0, 1.0
    with pytest.raises(ValueError, match="trained with captions only"):
        checked(config, ("sample",))


def test_guidance_needs_captions_that_were_left_out(told: Make) -> None:
    config = told()
    config.text.dropout = 0.0
    with pytest.raises(ValueError, match="with and without labels or captions"):
        build(config)


def test_the_figure_of_prompts_marks_what_was_held_out(
    told: Make, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    experiment = build(told())
    loaded = load_ema(experiment, run, devices.make_mesh())
    [path] = page.figures(experiment, tmp_path, loaded, devices.make_mesh())
    arrays = np.load(path.with_suffix(".npz"))
    known: Any = experiment.dataset.open("train")
    trained = {known.text(i) for i in range(len(known))}
    assert [text not in trained for text in arrays["prompts"]] == arrays["held_out"].tolist()
    assert arrays["held_out"].any() and not arrays["held_out"].all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.data.update(name="digits"), "needs captions, which 'digits' does not have"),
        (lambda c: c.model.update(class_conditional=True), "two conditions: choose one"),
        (lambda c: c.text.update(num_heads=3), "config.text.width = 8 must be divisible"),
        (lambda c: attending(c, (5,)), "names 5, which no level"),
    ],
)
def test_what_cannot_be_told_is_refused(told: Make, change: Any, words: str) -> None:
    config = told()
    config.encoder = ConfigDict(dict(name="pixels"))
    config.text.vocabulary = "one two"
    config.data = ConfigDict(dict(name=config.data.name, data_dir=config.data.data_dir))
    change(config)
    with pytest.raises(ValueError, match=words):
        build(config)


def test_words_for_a_model_that_knows_none_are_refused(
    tiny: Make, trained: tuple[ConfigDict, pathlib.Path]
) -> None:
    config = tiny()
    config.sample.prompts = "red apple"
    with pytest.raises(ValueError, match="asks in words, and this model knows none"):
        checked(config, ("sample",))
    with pytest.raises(ValueError, match="told no captions"):
        experiments.load(trained[1]).sample(prompts=["red apple"])


def test_python_says_what_is_wrong_with_prompts(model: api.Model) -> None:
    for wrong, words in (
        (["qwertz"], "no word of the prompt"),
        (" ", "no word in the prompt ' '"),
        ([3], "prompts must be texts"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(prompts=wrong)
    with pytest.raises(ValueError, match="^n is missing: say how many images, or name prompts.$"):
        model.sample()
    with pytest.raises(ValueError, match="labels must be 2 captions"):
        model.denoise(np.zeros((2, 32, 32, 3)), 0, labels=["one"])
    estimate = model.denoise(np.ones((2, 32, 32, 3)), 3, labels=["grinning face", "thumbs up sign"])
    assert estimate.shape == (2, 32, 32, 3)
    assert not np.array_equal(estimate[0], estimate[1])


@pytest.mark.slow
def test_latents_of_a_vae_are_told_names(
    told: Make, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The recipe of docs/latent.md in small: an autoencoder, and a U-Net that attends to words."""
    config = vae_emoji.get_config()
    config.data.data_dir = str(prepared)
    config.model.update(dict(channels=8, channel_multipliers=(1, 1, 1)))
    config.optimizer.update(dict(warmup_steps=2, cosine_steps=0))
    config.train.update(dict(batch_size=8, num_steps=2, steps_per_call=2, log_every=2))
    config.train.update(dict(checkpoint_every=2, preview_every=0))
    assert train.train(build(config), tmp_path / "vae") is Outcome.FINISHED
    config = told()
    attending(config, (8,))
    config.encoder = text_emoji.get_config().encoder
    config.encoder.workdir = str(tmp_path / "vae")
    assert train.train(build(config), tmp_path / "text") is Outcome.FINISHED
    model = experiments.load(tmp_path / "text")
    moved = jax.tree.map(lambda p: np.asarray(p) + 0.1, model.params)
    model.params = jax.device_put(moved, devices.replicated(devices.make_mesh()))
    drawn = model.sample(prompts=["grinning face", "thumbs up sign"])
    assert drawn.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(drawn[0], model.sample(prompts="grinning face")[0])
    assert not np.array_equal(drawn[1], model.sample(2, prompts=["grinning face"])[1])
