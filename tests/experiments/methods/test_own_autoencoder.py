"""A run of latents keeps its autoencoder, and goes on whatever becomes of the VAE's own folder."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from experiments import devices, hooks
from experiments.build import build
from experiments.configs import saved
from experiments.data.digits import digits
from experiments.experiment import Experiment
from experiments.methods import latent
from experiments.methods.latent import measure, read_vae
from experiments.state import load_ema
from experiments.workdir.autoencoder import copied, copy_of
from experiments.workdir.checkpoint import CheckpointError, Checkpoints
from experiments.workdir.config import read_config
from experiments.workdir.outcome import Outcome
from tests.experiments import modes

Make = Callable[[], ConfigDict]


def trained_on(tiny_vae: Make, folder: pathlib.Path) -> None:
    """The same training goes on, and the steps that it was on before are gone."""
    config = tiny_vae()
    config.train.num_steps, config.train.keep_checkpoints = 16, 1
    assert hooks.train_with_hooks(build(config), folder) is Outcome.FINISHED


def of_latents(plain: Make, folder: pathlib.Path) -> ConfigDict:
    config = plain()
    config.encoder = ConfigDict(
        dict(name="vae", workdir=str(folder), checkpoint=0, identity="", shift=(), scale=())
    )
    config.sample.threshold = ConfigDict(dict(name="none"))
    config.evaluate.clip_denoised = False
    config.train.num_steps = 4
    return config


def command(config: ConfigDict, workdir: pathlib.Path) -> Experiment:
    """The experiment of the same command line, in a folder that may hold a run."""
    return build(saved.with_autoencoder_of(str(workdir), config))


@pytest.fixture
def vae(vae_run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(vae_run, tmp_path / "vae")


@pytest.fixture
def run(plain: Make, vae: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    experiment = build(of_latents(plain, vae))
    assert hooks.train_with_hooks(experiment, tmp_path / "run") is Outcome.FINISHED
    return tmp_path / "run"


def removed(tiny_vae: Make, folder: pathlib.Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [trained_on, removed])
def test_a_run_of_latents_needs_the_vaes_folder_no_more(
    change: Any, plain: Make, tiny_vae: Make, run: pathlib.Path, vae: pathlib.Path
) -> None:
    """Samples in Python and by the program, and the training that goes on, are what they were."""
    before = experiments.load(run).sample(5)
    config = of_latents(plain, vae)
    change(tiny_vae, vae)
    model = experiments.load(run)
    np.testing.assert_array_equal(model.sample(5), before)
    modes.sample(model.experiment, run)
    config.train.num_steps = 8
    assert hooks.train_with_hooks(command(config, run), run) is Outcome.FINISHED
    assert experiments.load(run).step == 8
    assert vae.exists() == (change is trained_on)
    config.train.num_steps = 12  # and once more, by the same command
    assert hooks.train_with_hooks(command(config, run), run) is Outcome.FINISHED


def test_the_copy_is_the_vae(vae: pathlib.Path, run: pathlib.Path) -> None:
    known = copied(run)
    assert known is not None and known["workdir"] == str(vae)
    assert known["identity"] == read_config(run).encoder.identity
    mine, theirs = (read_vae(str(folder), digits()) for folder in (copy_of(run), vae))
    jax.tree.map(np.testing.assert_array_equal, mine.params, theirs.params)
    assert mine.identity == theirs.identity
    drawn = [experiments.load(folder).sample(3) for folder in (copy_of(run), vae)]
    np.testing.assert_array_equal(*drawn)
    files = [path for path in copy_of(run).rglob("*") if path.is_file()]
    whole = sum(path.stat().st_size for path in (vae / "checkpoints" / "8").rglob("*"))
    assert sum(path.stat().st_size for path in files) < whole / 2  # no optimizer, one set


def without_copy(run: pathlib.Path) -> None:
    """As an older version left it."""
    shutil.rmtree(copy_of(run))
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["encoder"].pop("checkpoint")
    path.write_text(json.dumps(content))


def test_an_older_run_works_with_the_vaes_folder_and_takes_a_copy(
    plain: Make, tiny_vae: Make, run: pathlib.Path, vae: pathlib.Path
) -> None:
    """Also where the VAE was trained on and its step is still there."""
    without_copy(run)
    config = tiny_vae()
    config.train.num_steps = 12
    assert hooks.train_with_hooks(build(config), vae) is Outcome.FINISHED
    before = experiments.load(run).sample(5)
    config = of_latents(plain, vae)
    config.train.num_steps = 8
    assert hooks.train_with_hooks(command(config, run), run) is Outcome.FINISHED
    shutil.rmtree(vae)
    assert experiments.load(run).step == 8 and before.shape == (5, 8, 8, 1)


def test_an_older_run_without_its_vae_is_not_told_to_train_one(
    tiny_vae: Make, plain: Make, run: pathlib.Path, vae: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    without_copy(run)
    trained_on(tiny_vae, vae)
    with pytest.raises(ValueError, match=r"encoder.identity = .* holds [0-9a-f]{12}. Name the"):
        experiments.load(run)
    vae.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="of which it has no copy. Name the folder") as refused:
        experiments.load(run)
    assert "Train one first" not in str(refused.value)
    shutil.rmtree(tmp_path / "moved" / "checkpoints")
    config = of_latents(plain, tmp_path / "moved")
    with pytest.raises(CheckpointError, match="checkpoints is not there. Wait") as refused:
        build(config)
    assert "Train one first" not in str(refused.value)
    with pytest.raises(ValueError, match="Train one first"):
        build(of_latents(plain, tmp_path / "never"))


def test_a_step_of_the_vae_can_be_named(
    plain: Make, vae: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    dataset, config = digits(), of_latents(plain, vae)
    older, newest = (read_vae(str(vae), dataset, step) for step in (4, 0))
    assert (older.meta["step"], newest.meta["step"]) == (4, 8)
    assert older.identity != newest.identity == read_vae(str(vae), dataset, 8).identity
    assert read_vae(str(vae), dataset, 0, older.identity).meta["step"] == 4
    config.encoder.checkpoint = 4
    experiment = build(config)
    assert experiment.config.encoder.identity == older.identity
    assert measure(str(vae), dataset, 4)["identity"] == older.identity
    assert hooks.train_with_hooks(experiment, tmp_path / "run") is Outcome.FINISHED
    with Checkpoints(copy_of(tmp_path / "run")) as checkpoints:
        assert checkpoints.steps() == [4]
    config.encoder.checkpoint = 5
    with pytest.raises(CheckpointError, match=r"checkpoint = 5, and .* has \[4, 8\]"):
        build(config)


def test_another_vae_is_neither_used_nor_copied(
    plain: Make, tiny_vae: Make, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tiny_vae()
    other.seed, other.train.num_steps, before = 1, 4, copied(run)
    assert hooks.train_with_hooks(build(other), tmp_path / "other") is Outcome.FINISHED
    config = of_latents(plain, tmp_path / "other")
    config.train.num_steps = 8
    with pytest.raises(ValueError, match="holds a run under another config:\n  encoder.identity"):
        hooks.train_with_hooks(command(config, run), run)
    assert copied(run) == before
    with pytest.raises(ValueError, match="holds a run under another config"):
        load_ema(build(config), run, devices.make_mesh())


def test_a_copy_that_was_cut_short_is_made_again(
    plain: Make, run: pathlib.Path, vae: pathlib.Path
) -> None:
    (copy_of(run) / "encoder.json").unlink()
    experiment = experiments.load(run).experiment
    assert experiment.config.encoder.workdir == str(vae)
    latent.keep(experiment.config.encoder, experiment.dataset, run)
    shutil.rmtree(vae)
    assert experiments.load(run).experiment.config.encoder.workdir == str(copy_of(run))


def test_pixels_leave_no_copy(plain: Make, tmp_path: pathlib.Path) -> None:
    assert hooks.train_with_hooks(build(plain()), tmp_path) is Outcome.FINISHED
    assert not copy_of(tmp_path).exists()
