"""A data set and a config small enough to train in a moment."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion.networks import AUTOENCODERS, NETWORKS
from experiments import build as builder
from experiments import devices, train
from experiments.build import build
from experiments.configs import digits, vae_digits
from experiments.experiment import Experiment
from experiments.features import classifier
from experiments.methods import diffusion as diffusion_method
from experiments.methods import vae as vae_method
from experiments.methods.latent import measure
from experiments.state import load_ema
from experiments.workdir.outcome import Outcome
from tests.experiments.gaussian_method import gaussian
from tests.experiments.small_network import SmallAutoencoder, SmallNetwork

QUICK = classifier.Recipe(channels=(8, 16), steps=60)


@pytest.fixture(scope="session")
def tiny_unet(data_dir: pathlib.Path) -> Callable[[], ConfigDict]:
    """Makes a config of the digits with the smallest U-Net, a short chain and few steps."""

    def make() -> ConfigDict:
        config = digits.get_config("eps_simple")
        config.data.data_dir = str(data_dir)
        config.schedule = ConfigDict(
            dict(name="linear", num_timesteps=8, beta_start=0.02, beta_end=0.8)
        )
        config.model.channels = 8
        config.model.norm_groups = 4
        config.model.channel_multipliers = (1,)
        config.model.attention_resolutions = ()
        config.model.dropout = 0.1
        config.optimizer.warmup_steps = 2
        config.train.batch_size = 16
        config.train.num_steps = 8
        config.train.steps_per_call = 2
        config.train.log_every = 4
        config.train.preview_every = 0
        config.train.preview_num_steps = 4
        config.train.checkpoint_every = 4
        config.sample.num_images = 12
        config.sample.batch_size = 8
        config.sample.progress_images = 3
        config.evaluate.num_images = 10
        config.evaluate.batch_size = 8
        config.evaluate.num_strata = 3
        return config

    return make


@pytest.fixture(scope="session")
def tiny(tiny_unet: Callable[[], ConfigDict]) -> Iterator[Callable[[], ConfigDict]]:
    """Makes the same config with two convolutions in place of the U-Net."""

    def make() -> ConfigDict:
        config = tiny_unet()
        shared = ("channels", "dropout", "class_conditional", "label_dropout", "dtype")
        model = {name: config.model[name] for name in shared}
        config.model = ConfigDict(dict(name="small", **model))
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion_method, "NETWORKS", {**NETWORKS, "small": SmallNetwork})
        yield make


@pytest.fixture(scope="session")
def plain(tiny: Callable[[], ConfigDict]) -> Iterator[Callable[[], ConfigDict]]:
    """Makes the same config of one Gaussian per pixel, for laws that hold of any method.

    Nothing is cheaper to compile and to train.
    """

    def make() -> ConfigDict:
        config = tiny()
        config.method = ConfigDict(dict(name="gaussian"))
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "METHODS", {**builder.METHODS, "gaussian": gaussian})
        yield make


@pytest.fixture(scope="session")
def trained(
    tiny: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConfigDict, pathlib.Path]:
    """A config and its run after a few steps; tests may add results to it, and train no further."""
    config, workdir = tiny(), tmp_path_factory.mktemp("trained")
    assert train.train(build(config), workdir) is Outcome.FINISHED
    return config, workdir


@pytest.fixture(scope="session")
def trained_unet(
    tiny_unet: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConfigDict, pathlib.Path]:
    """The same of the smallest U-Net, which the program of another process knows too."""
    config, workdir = tiny_unet(), tmp_path_factory.mktemp("unet")
    assert train.train(build(config), workdir) is Outcome.FINISHED
    return config, workdir


@pytest.fixture(scope="session")
def plain_run(
    plain: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConfigDict, pathlib.Path]:
    """The same of one Gaussian per pixel."""
    config, workdir = plain(), tmp_path_factory.mktemp("plain")
    assert train.train(build(config), workdir) is Outcome.FINISHED
    return config, workdir


@pytest.fixture(scope="session")
def params(trained: tuple[ConfigDict, pathlib.Path]) -> Any:
    """Its parameters moved far from zero output, so that noise and images matter."""
    config, workdir = trained
    params = load_ema(build(config), workdir, devices.make_mesh()).params
    return jax.tree.map(lambda x: np.asarray(x + 0.1), params)


@pytest.fixture(scope="session")
def tiny_vae(data_dir: pathlib.Path) -> Iterator[Callable[[], ConfigDict]]:
    """Makes a config of the least VAE of the digits, with latents of 4x4x2."""

    def make() -> ConfigDict:
        config = vae_digits.get_config()
        config.data.data_dir = str(data_dir)
        config.model = ConfigDict(
            dict(name="small", channels=8, latent_channels=2, dropout=0.0, dtype="float32")
        )
        config.method.kl_warmup_steps = 4
        config.optimizer.warmup_steps = 2
        config.train.batch_size = 16
        config.train.num_steps, config.train.steps_per_call = 8, 2
        config.train.log_every = config.train.checkpoint_every = 4
        config.train.preview_every = 0
        config.sample.num_images, config.sample.batch_size = 12, 8
        config.evaluate.num_images, config.evaluate.batch_size = 10, 8
        config.evaluate.num_importance = 3
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_method, "AUTOENCODERS", {**AUTOENCODERS, "small": SmallAutoencoder})
        yield make


@pytest.fixture(scope="session")
def vae_run(
    tiny_vae: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run of such a VAE, its latents measured; tests may add results to it."""
    config, workdir = tiny_vae(), tmp_path_factory.mktemp("vae")
    experiment = build(config)
    assert train.train(experiment, workdir) is Outcome.FINISHED
    measure(str(workdir), experiment.dataset)
    return workdir


@pytest.fixture(scope="session")
def tiny_experiment(tiny: Callable[[], ConfigDict]) -> Experiment:
    return build(tiny())


@pytest.fixture(scope="module")
def quick_classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, and a classifier of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DDPM_INCEPTION_WEIGHTS", raising=False)
        patch.setattr(classifier, "RECIPE", QUICK)
        yield
