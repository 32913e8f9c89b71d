"""A trained model in Python computes what the program does, and says what cannot be."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from diffusion.forward import at, q_sample
from diffusion.paths import grid, through
from diffusion.samplers import SAMPLERS
from diffusion.schedules import BETAS, from_betas
from experiments import api, train
from experiments.build import build
from experiments.data.dataset import read_images
from experiments.editing import make_inpaint
from experiments.workdir.checkpoint import CheckpointError
from experiments.workdir.origin import Loaded
from experiments.workdir.outcome import Outcome
from tests.experiments import modes
from tests.experiments.weights.published_configs import base_config
from tests.fixtures.published import FOLDER

Make = Callable[[], ConfigDict]


@pytest.fixture(scope="module")
def run(trained: tuple[ConfigDict, pathlib.Path]) -> pathlib.Path:
    return trained[1]


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> api.Model:
    return experiments.load(run)


@pytest.fixture(scope="module")
def told(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    """One that is told labels, and was sometimes not."""
    config, workdir = tiny(), tmp_path_factory.mktemp("told")
    config.model.class_conditional, config.model.label_dropout = True, 0.2
    assert train.train(build(config), workdir) is Outcome.FINISHED
    return experiments.load(workdir)


def images(model: api.Model, count: int) -> dict[str, np.ndarray]:
    return read_images(model.experiment.dataset.open("test"), 0, count)


def test_its_samples_are_the_program_s(trained: tuple, model: api.Model) -> None:
    config, run = trained
    modes.sample(build(config), run)
    expected = np.load(run / "samples" / "samples.npz")["arr_0"].astype(int)
    drawn = model.sample(12).astype(int)
    assert (drawn != expected).mean() < 0.02 and np.abs(drawn - expected).max() <= 16
    assert model.step == config.train.num_steps and "step 8" in repr(model)


def test_a_sample_depends_on_its_number_and_the_seed_alone(model: api.Model) -> None:
    eight = model.sample(8, seed=3, steps=4)
    assert (model.sample(3, seed=3, steps=4) != eight[:3]).mean() < 0.02
    assert (model.sample(8, seed=4, steps=4) != eight).mean() > 0.2
    assert len(model._sampling) <= 2  # other seeds compile nothing
    same = model.sample(8, seed=3, steps=4, sampler={"name": "ancestral"})
    np.testing.assert_array_equal(same, eight)


def test_encoding_is_undone_by_decoding(model: api.Model) -> None:
    pictures = images(model, 20)["image"]
    x = model.encode(pictures)
    assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(model.decode(x), pictures)


def test_denoising_inverts_the_noise_that_the_network_sees(model: api.Model) -> None:
    """The estimate of x_0 is where x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps says."""
    x_0, t = jnp.asarray(model.encode(images(model, 4)["image"])), jnp.array([0, 2, 5, 7])
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    x_t = q_sample(model.schedule, x_0, t, eps)
    found = model.denoise(np.asarray(x_t), t.tolist())
    chain = model.experiment.method.chain
    assert chain is not None
    output = jax.jit(chain.apply)(model.params, x_t, t)
    now = at(model.schedule, t, x_t)
    again = now.signal * found + now.noise * output
    np.testing.assert_allclose(again, x_t, atol=1e-4)
    one = model.denoise(np.asarray(x_t), 5)
    np.testing.assert_allclose(one[2], found[2], atol=1e-4)


def test_its_bits_are_the_metric_s(trained: tuple, model: api.Model) -> None:
    config, run = trained
    expected = modes.evaluate(build(config), run)["bpd"]["bits_per_dim"]["value"]
    found = model.bits_per_dim(images(model, config.evaluate.num_images)["image"])
    assert found.shape == (10,) and found.mean() == pytest.approx(expected, rel=1e-4)


def test_labels_matter_to_a_model_that_is_told_them(told: api.Model) -> None:
    every = told.sample(10, steps=4).astype(int)
    for wanted in (3, [3], np.array([3]), np.int64(3), "3", ["#3"]):
        threes = told.sample(10, steps=4, labels=wanted).astype(int)
        assert np.abs(threes[3] - every[3]).max() <= 16
    batch = images(told, 3)
    with pytest.raises(ValueError, match="labels must be 3 whole numbers from 0 to 10"):
        told.bits_per_dim(batch["image"], [1, 2])
    right = told.bits_per_dim(batch["image"], batch["label"])
    assert right.shape == told.bits_per_dim(batch["image"]).shape == (3,)  # without: the null class


REFUSED: dict[str, tuple[Callable[[api.Model, Any], Any], str]] = {
    "none": (lambda m, x: m.sample(0), "n = 0 must be a whole number of at least 1"),
    "half": (lambda m, x: m.sample(1.5), "n = 1.5 must be a whole number"),
    "seed": (lambda m, x: m.sample(1, seed=-1), "seed = -1 .* from 0 to 4294967295"),
    "steps": (lambda m, x: m.sample(1, steps=9), "steps = 9 must be .* from 0 to 8"),
    "sampler": (lambda m, x: m.sample(1, sampler="ddmi"), "^sampler = 'ddmi' is not known"),
    "no option": (lambda m, x: m.sample(1, sampler="ddim(eta=2)"), "^sampler.*eta"),
    "unread": (
        lambda m, x: m.sample(1, sampler="ddim(eta"),
        "^sampler = 'ddim.eta' is not underst",
    ),
    "wrong option": (
        lambda m, x: m.sample(1, sampler={"name": "ddim", "et": 1}),
        "^sampler has 'et'",
    ),
    "guidance": (lambda m, x: m.sample(1, guidance=2.0), "^guidance = 2"),
    "guidance in words": (lambda m, x: m.sample(1, guidance="high"), "^guidance = 'high' must be"),
    "nameless": (lambda m, x: m.sample(1, sampler={"eta": 1.0}), "^sampler = {'eta'.* must be a"),
    "no number": (lambda m, x: m.sample(), "^n is missing"),
    "no class": (lambda m, x: m.sample(1, labels="none"), "^labels = 'none' asks for classes"),
    "no sampler": (lambda m, x: m.sample(1, sampler=3), "sampler = 3 must be a name"),
    "labels": (lambda m, x: m.sample(1, labels=3), "knows none"),
    "late": (lambda m, x: m.denoise(x, 8), "t = 8 must be .* from 0 to 7"),
    "between": (lambda m, x: m.denoise(x, 0.5), "t = 0.5 must be a whole number"),
    "true": (lambda m, x: m.denoise(x, True), "t = True must be"),
    "word": (lambda m, x: m.denoise(x, "a"), "t = 'a' must be"),
    "too many": (lambda m, x: m.denoise(x, [0, 1, 2]), "one timestep, or 2 of them"),
    "float": (lambda m, x: m.encode(x), r"uint8\[n, 8, 8, 1\].*float32\[2, 8, 8, 1\]"),
    "shape": (lambda m, x: m.decode(x[0]), r"float32\[n, 8, 8, 1\]"),
    "nan": (lambda m, x: m.decode(x * np.nan), "128 values that are not finite"),
    "complex": (lambda m, x: m.decode(x * 1j), "complex64"),
    "bits": (lambda m, x: m.bits_per_dim(x), r"uint8\[n, 8, 8, 1\]"),
    "checkpoint": (lambda m, x: experiments.load(".", checkpoint="first"), "'latest', 'best'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(model: api.Model, name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        call(model, np.zeros((2, 8, 8, 1), np.float32))


def test_a_sampler_is_written_as_on_the_command_line(model: api.Model) -> None:
    one = model.sample(3, steps=4, sampler="ddim(eta=0.5)")
    np.testing.assert_array_equal(one, model.sample(3, steps=4, sampler=dict(name="ddim", eta=0.5)))
    assert not np.array_equal(one, model.sample(3, steps=4, sampler="ddim"))


def test_an_argument_that_would_change_nothing_is_refused(run: pathlib.Path) -> None:
    for name, value in (("encoder", "runs/vae"), ("weights", "ema"), ("config", ConfigDict())):
        with pytest.raises(ValueError, match=f"(?s)^{name} = .*Leave it out"):
            experiments.load(run, **{name: value})
    for name, value in (("encoder", "runs/vae"), ("checkpoint", "best")):
        with pytest.raises(ValueError, match=f"^{name} = '{value}': .*Leave it out"):
            experiments.load(FOLDER / "ddpm-cifar10-32", **{name: value})


def test_nothing_is_loaded_from_nothing(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """And reading writes nothing."""
    with pytest.raises(FileNotFoundError, match="does not exist: name the --workdir"):
        experiments.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is empty: no training"):
        experiments.load(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        experiments.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_published_weights_are_a_model_too(capsys: pytest.CaptureFixture) -> None:
    """A folder of diffusers, whose config is found by its name, and one for which it is given."""
    model = experiments.load(FOLDER / "ddpm-cifar10-32")
    assert model.experiment.config.data.name == "cifar10" and model.step == 0
    assert "written" not in capsys.readouterr().out
    x_0 = model.denoise(np.zeros((1, 32, 32, 3), np.float32), 3)
    assert x_0.shape == (1, 32, 32, 3) and np.isfinite(x_0).all() and x_0.any()
    config = base_config("ddpm-celebahq-256")
    with pytest.raises(ValueError, match="for images"):
        experiments.load(FOLDER / "ddpm-celebahq-256")
    given = experiments.load(FOLDER / "ddpm-celebahq-256", config=config)
    assert given.experiment.encoder.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="no folder of diffusers"):
        experiments.load(FOLDER)


def test_what_is_known_of_an_image_comes_back_exactly(model: api.Model) -> None:
    pictures, mask = images(model, 5)["image"], np.ones((8, 8), bool)
    mask[:, 4:] = False
    found = model.inpaint(pictures, mask, resamplings=2, jump_length=3)
    np.testing.assert_array_equal(found[:, :, :4], pictures[:, :, :4])
    assert (found[:, :, 4:] != pictures[:, :, 4:]).any()
    np.testing.assert_array_equal(
        model.inpaint(pictures[:3], mask, resamplings=2, jump_length=3)[0, :, :4], found[0, :, :4]
    )
    # What stands under the mask does not matter; another seed does, and a mask each may be given.
    blank = np.where(mask[..., None], pictures, 0).astype(np.uint8)
    same = model.inpaint(blank, mask, resamplings=2, jump_length=3)
    np.testing.assert_array_equal(same, found)
    each = np.broadcast_to(mask, (5, 8, 8))
    other = model.inpaint(pictures, each, seed=1, resamplings=2, jump_length=3)
    assert (other != found).any()


@pytest.mark.parametrize(
    ("mask", "options", "words"),
    [
        (np.ones((4, 4)), {}, r"mask must be \[8, 8\] or \[2, 8, 8\]"),
        (np.full((8, 8), 0.5), {}, "zeros and ones"),
        (np.ones((8, 8)), {"resamplings": 0}, "resamplings = 0 must be"),
        (np.ones((8, 8)), {"sampler": "unipc"}, "remembers its last steps"),
    ],
)
def test_impossible_completions_are_refused(
    model: api.Model, mask: np.ndarray, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        model.inpaint(images(model, 2)["image"], mask, **options)


def test_ddim_encodes_what_it_decodes(model: api.Model) -> None:
    """Few steps of a hardly trained model give a coarse but similar image back."""
    pictures = images(model, 6)["image"]
    x_T = model.encode_noise(pictures)
    assert x_T.shape == (6, 8, 8, 1) and x_T.dtype == np.float32 and np.isfinite(x_T).all()
    np.testing.assert_array_equal(model.encode_noise(pictures[:2]).shape, (2, 8, 8, 1))
    off = abs(model.decode_noise(x_T).astype(int) - pictures).mean()
    noise = np.random.default_rng(0).normal(size=x_T.shape).astype(np.float32)
    assert off < 0.5 * abs(model.decode_noise(noise).astype(int) - pictures).mean()


def test_guidance_is_between_and_beyond_the_two_models(told: api.Model, model: api.Model) -> None:
    """Of parameters for which labels matter."""
    moved = jax.tree.map(lambda x: x + 0.1, told.params)
    loud = api.Model(told.experiment, Loaded(8, moved, told.origin), told._mesh)
    with_label = loud.sample(8, steps=4, labels=3)
    np.testing.assert_array_equal(loud.sample(8, steps=4, labels=3, guidance=1.0), with_label)
    without = loud.sample(8, steps=4, labels="none")
    off = abs(loud.sample(8, steps=4, labels=3, guidance=0.0).astype(int) - without)
    assert off.max() <= 16 and (off > 0).mean() < 0.02 < (without != with_label).mean()
    assert (loud.sample(8, steps=4, labels=3, guidance=5.0) != with_label).any()
    with pytest.raises(ValueError, match="^guidance = 3 needs a network"):
        model.sample(2, guidance=3)


def a_sampler_of_each_kind() -> list[str]:
    """The last of SAMPLERS of those that the program treats alike, and that a chain can be walked
    with."""
    levels = grid(through(from_betas(BETAS["linear"](4))), np.arange(4.0))
    kinds = {}
    for name, make in SAMPLERS.items():
        sampler = make(levels)
        if sampler.needs_path:
            continue
        memory = jax.tree.leaves(jax.eval_shape(sampler.init, jnp.zeros((1, 1))))
        kinds[sampler.continuous, sampler.uses_variance, bool(memory)] = name
    return list(kinds.values())


@pytest.mark.parametrize("name", a_sampler_of_each_kind())
def test_every_sampler_is_a_name_away(model: api.Model, name: str) -> None:
    found = model.sample(3, steps=4, sampler=name)
    assert found.shape == (3, 8, 8, 1) and (found != model.sample(3, steps=4)).any()
    np.testing.assert_array_equal(model.sample(3, steps=4, sampler=name), found)


def test_a_sampler_between_timesteps_completes_images_too(model: api.Model) -> None:
    experiment = model._sampled_by(4, "flow")
    known, labels = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32)
    complete = make_inpaint(
        experiment, experiment.method.chain.sampler, 4, jump_length=1, resamplings=1
    )
    keys = jax.random.split(jax.random.key(0), 2)
    assert jax.eval_shape(complete, model.params, known, known, labels, keys).shape == known.shape
