"""A run written for diffusers, read back, and trained on."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices
from experiments.build import build
from experiments.experiment import Experiment
from experiments.state import load_ema
from experiments.train import train
from experiments.weights import export, importer
from experiments.workdir.config import config_from_dict, config_to_dict, read_config
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.experiments.modes import evaluate, sample
from tests.experiments.test_build import DIT
from tests.experiments.weights.published_configs import base_config
from tests.fixtures.published import FOLDER


@pytest.fixture(scope="module")
def measured(trained_unet: tuple[ConfigDict, pathlib.Path]) -> tuple[Experiment, pathlib.Path]:
    """A run with its samples and numbers."""
    experiment, workdir = build(trained_unet[0]), trained_unet[1]
    sample(experiment, workdir)
    evaluate(experiment, workdir)
    return experiment, workdir


@pytest.mark.slow
def test_what_was_exported_comes_back_bit_for_bit(measured, tmp_path: pathlib.Path) -> None:
    """Ours to diffusers' to ours: parameters, config, step; and no folder of this machine."""
    experiment, workdir = measured
    export.write_diffusers(experiment, workdir, tmp_path / "model", "ema")
    importer.import_weights(str(tmp_path / "model"), tmp_path / "run", None, None)
    config = config_to_dict(read_config(tmp_path / "run"))
    expected = config_to_dict(experiment.config)
    assert config["data"].pop("data_dir") is None and expected["data"].pop("data_dir")
    assert config == expected
    mesh = devices.make_mesh()
    step, params, _ = load_ema(experiment, workdir, mesh)
    again = load_ema(build(read_config(tmp_path / "run")), tmp_path / "run", mesh)
    assert again[0] == step == experiment.config.train.num_steps
    jax.tree.map(np.testing.assert_array_equal, again[1], params)
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            assert str(workdir.parent).encode() not in path.read_bytes()


@pytest.mark.slow
def test_what_was_converted_is_exported_and_comes_back(tmp_path: pathlib.Path) -> None:
    """A folder of images too, without the name of any file or folder of this machine."""
    name = "ddpm-celebahq-256"
    source = shutil.copytree(FOLDER / name, tmp_path / "somewhere" / name)
    importer.import_weights(str(source), tmp_path / "run", base_config(name), None)
    experiment = build(read_config(tmp_path / "run"))
    export.write_diffusers(experiment, tmp_path / "run", tmp_path / "model", "ema")
    for path in (tmp_path / "model").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "training steps not recorded" in card and "weights as published" in card
    importer.import_weights(str(tmp_path / "model"), tmp_path / "again", None, None)
    ours, again = (read_config(tmp_path / folder) for folder in ("run", "again"))
    assert config_to_dict(ours) == config_to_dict(again)


@pytest.mark.slow
def test_the_card_gives_the_results_and_where_they_come_from(
    measured, tmp_path: pathlib.Path
) -> None:
    experiment, workdir = measured
    export.write_diffusers(experiment, workdir, tmp_path / "model", "ema")
    card = (tmp_path / "model" / "README.md").read_text()
    results = read_results(workdir)
    for section, content in results.items():
        assert f"- {section}: {content['provenance']['date']}" in card
    bits = results["bpd"]["values"]["bits_per_dim"]
    row = f"| bpd | bits_per_dim | {bits['value']:.4f} ± {bits['standard_error']:.4f} |"
    assert row in card and "num_images = 10, " in card
    assert "8×8×1 images" in card and "for 8 steps; these are the EMA weights" in " ".join(
        card.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameterization": {"name": "mu"}}, "schedulers take eps"),
        ({"variance": {"name": "learned"}, "loss": {"name": "vlb"}}, "it is its logarithm"),
        ({"model.class_conditional": True}, "passes no labels"),
        ({"model.fourier_features": (3, 4)}, r"fourier_features = \(3, 4\).*the image alone"),
        (
            {
                **{"model.num_heads": 2, "model.channel_multipliers": (1, 2)},
                **{"model.attention_resolutions": (8,)},
            },
            r"heads of equal width.*these levels attend with \[8, 16\] channels",
        ),
        ({"model": DIT}, "config.model.name = 'dit': .*U-Net only.*this network is a DiT"),
    ],
)
def test_what_diffusers_has_not_is_not_written(
    fields: dict[str, Any], message: str, measured, tmp_path: pathlib.Path
) -> None:
    experiment, workdir = measured
    config = config_from_dict(config_to_dict(experiment.config))
    with config.unlocked():
        for name, value in fields.items():
            owner, _, field = name.rpartition(".")
            (config[owner] if owner else config)[field] = (
                ConfigDict(value) if isinstance(value, dict) else value
            )
    config.train.preview_num_steps = 0
    with pytest.raises(ValueError, match=message):
        export.write_diffusers(build(config), workdir, tmp_path / "model", "ema")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_folder_in_use_is_not_written(measured, tmp_path: pathlib.Path) -> None:
    experiment, workdir = measured
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is not empty\. Choose another --out"):
        export.write_diffusers(experiment, workdir, tmp_path, "ema")


@pytest.mark.slow
@pytest.mark.slow
def test_training_goes_on_from_converted_weights(measured, tmp_path: pathlib.Path) -> None:
    """Under another optimizer even, Adam starting afresh; a second start is a resume like any."""
    experiment, workdir = measured
    export.write_diffusers(experiment, workdir, tmp_path / "model", "ema")
    path = tmp_path / "model" / "training_run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "as published"}))
    importer.import_weights(str(tmp_path / "model"), tmp_path / "run", experiment.config, None)
    found = load_ema(experiment, tmp_path / "run", devices.make_mesh())
    assert found.origin == ("as published", "nothing", 0)
    config = config_from_dict(config_to_dict(experiment.config))
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 0  # another state of the optimizer
    config.timesteps.name = "loss_second_moment"
    config.train.num_steps += 4
    assert train(build(config), tmp_path / "run") is Outcome.FINISHED
    step, params, origin = load_ema(build(config), tmp_path / "run", devices.make_mesh())
    assert step == config.train.num_steps and origin.weights == "ema"
    before = load_ema(experiment, workdir, devices.make_mesh()).params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, before)
    assert 0 < max(jax.tree.leaves(moved)) < 0.05
    config.optimizer.learning_rate = 1e-3
    with pytest.raises(ValueError, match="another config"):
        train(build(config), tmp_path / "run")
