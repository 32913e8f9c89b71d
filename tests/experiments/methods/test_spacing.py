"""Timesteps of sampling: the sampler's own where none are asked for, and what older runs meant."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion.grids import GRIDS
from diffusion.paths import PATHS, grid, levels_of
from diffusion.samplers import SAMPLERS
from diffusion.schedules import from_betas
from diffusion.spacings import SPACINGS
from experiments import hooks
from experiments.build import build
from experiments.configs import saved
from experiments.configs.continuous import CONTINUOUS
from experiments.devices import make_mesh
from experiments.files.atomic import write_json
from experiments.state import TrainState, facts, save, training_images
from experiments.workdir.checkpoint import BEST, Checkpoints
from experiments.workdir.config import config_to_dict

Make = Callable[[], ConfigDict]


def sampled_by(tiny: Make, name: str, spacing: str = "") -> ConfigDict:
    config = tiny()
    config.sample.sampler = ConfigDict(dict(name=name))
    if spacing:
        config.sample.spacing = ConfigDict(dict(name=spacing))
    return config


CHAIN = levels_of(from_betas([0.1, 0.2]))
PATH = grid(PATHS["cosine"](), GRIDS["uniform"](PATHS["cosine"](), 4))
FLAGS = {name: make(PATH) for name, make in SAMPLERS.items()}
OF_CHAINS = [name for name, each in FLAGS.items() if not each.needs_path]


@pytest.mark.parametrize("name", OF_CHAINS)
def test_without_a_wish_the_timesteps_are_the_samplers_own(tiny: Make, name: str) -> None:
    """And its protocol names them, as if they had been asked for."""
    method = build(sampled_by(tiny, name)).method
    own = SAMPLERS[name](CHAIN).spacing
    assert method.protocol["spacing"] == {"name": own.__name__}
    np.testing.assert_array_equal(method.chain.respaced(3)[0].told, own(8, 3))
    asked = build(sampled_by(tiny, name, "quadratic")).method
    assert asked.protocol["spacing"] == {"name": "quadratic"}
    np.testing.assert_array_equal(asked.chain.respaced(3)[0].told, SPACINGS["quadratic"](8, 3))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [name for name, each in FLAGS.items() if each.adaptive])
def test_what_chooses_its_own_steps_goes_to_the_start_of_a_path(
    tiny: Make, name: str, path: str
) -> None:
    """It ends at the first level, from which an estimate of x_0 must not be far."""
    config = sampled_by(tiny, name)
    CONTINUOUS["flow"].change(config)
    config.path = ConfigDict(dict(name=path, num_timesteps=20))
    config.sample.sampler = ConfigDict(dict(name=name))
    config.sample.num_steps = 0
    chain = build(config).method.chain
    assert chain.respaced(0).levels.time[1] == pytest.approx(PATHS[path]().start, rel=1e-6)


def test_auto_takes_no_options_and_is_one_of_the_choices(tiny: Make) -> None:
    config = sampled_by(tiny, "unipc")
    config.sample.spacing = ConfigDict(dict(name="auto", share=0.5))
    with pytest.raises(ValueError, match=r"sample\.spacing has 'share', which 'auto' does not"):
        build(config)
    config.sample.spacing = ConfigDict(dict(name="linspace"))
    with pytest.raises(ValueError, match=r"sample\.spacing\.name = 'linspace'.*: auto, uniform"):
        build(config)


@pytest.mark.parametrize(
    "written", [{"name": "uniform"}, {"name": "quadratic", "share": 0.5}, None]
)
def test_an_older_run_keeps_the_timesteps_that_it_had(tiny: Make, tmp_path, written) -> None:
    """Whichever sampler is asked for now; before there was a choice they were evenly spaced."""
    content = config_to_dict(tiny())
    assert content["sample"]["spacing"] == {"name": "auto"}
    del content["sample"]["spacing"]
    if written:
        content["sample"]["spacing"] = written
    write_json(tmp_path / "config.json", content)
    config = saved.get_config(str(tmp_path))
    assert config.sample.spacing.to_dict() == (written or {"name": "uniform"})
    config.sample.sampler = ConfigDict(dict(name="unipc"))
    assert build(config).method.protocol["spacing"] == (written or {"name": "uniform"})


def test_a_best_checkpoint_from_before_auto_is_gone_on_from(
    tiny: Make, tmp_path: pathlib.Path
) -> None:
    """Its samples were drawn on the timesteps that auto means; those of another sampler are not."""
    config = tiny()
    config.train.validate_with = "samples"
    experiment = build(config)
    about = facts(experiment, training_images(experiment))
    about["config"]["sample"]["spacing"] = {"name": "uniform"}
    about |= {"validation": 1.0, "selected_on": hooks.selected_on(experiment)}
    with Checkpoints(tmp_path / BEST) as checkpoints:
        save(checkpoints, 2, TrainState({"w": np.zeros(2)}, (), {"w": np.zeros(2)}, (), ()), about)
    hooks.Validation(experiment, tmp_path, make_mesh()).close()
    config.sample.spacing = ConfigDict(dict(name="trailing"))
    with pytest.raises(ValueError, match=r"sample\.spacing\.name: uniform then, trailing now"):
        hooks.Validation(build(config), tmp_path, make_mesh())


def test_a_vae_has_no_timesteps(tiny_vae: Make) -> None:
    """And is built with what older configs say of them."""
    config = tiny_vae()
    for name in ("auto", "uniform"):
        config.sample.spacing = ConfigDict(dict(name=name))
        build(config)
    config.sample.spacing = ConfigDict(dict(name="trailing"))
    with pytest.raises(ValueError, match=r"sample\.spacing = .*Leave it at {'name': 'auto'}"):
        build(config)
