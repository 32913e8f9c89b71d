"""The formats that weights come in: their names, and what else they say."""

import json
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from diffusion.networks.unet import UNet
from experiments import devices
from experiments.build import build
from experiments.configs import cifar10
from experiments.files.parameters import params_from_tensors, tensors_from_params
from experiments.state import load_ema
from experiments.weights import diffusers_config, export, importer, sources
from experiments.weights.unet_names import NAMINGS
from tests.experiments.weights.published_configs import base_config
from tests.fixtures.make_unet_diffusers import param_shapes, random_params
from tests.fixtures.published import FOLDER

CIFAR10, CELEBAHQ = FOLDER / "ddpm-cifar10-32", FOLDER / "ddpm-celebahq-256"
FIELDS = dict(
    channels=4,
    channel_multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(4,),
    norm_groups=2,
)
PARAMS = random_params(param_shapes(UNet(out_channels=1, **FIELDS), (8, 8, 1)))
LEAST = FIELDS | dict(channel_multipliers=(1,), attention_resolutions=())


NAMED = {
    ("conv_in", "kernel"): ("conv_in.weight", "conv_in.weight", "model/conv_in/W"),
    ("temb", "dense0", "kernel"): (
        "time_embedding.linear_1.weight",
        "temb.dense.0.weight",
        "model/temb/dense0/W",
    ),
    ("temb", "dense1", "bias"): (
        "time_embedding.linear_2.bias",
        "temb.dense.1.bias",
        "model/temb/dense1/b",
    ),
    ("down_1", "block_0", "norm1", "scale"): (
        "down_blocks.1.resnets.0.norm1.weight",
        "down.1.block.0.norm1.weight",
        "model/down_1/block_0/norm1/gamma",
    ),
    ("down_1", "block_0", "temb_proj", "kernel"): (
        "down_blocks.1.resnets.0.time_emb_proj.weight",
        "down.1.block.0.temb_proj.weight",
        "model/down_1/block_0/temb_proj/W",
    ),
    ("down_1", "block_0", "nin_shortcut", "kernel"): (
        "down_blocks.1.resnets.0.conv_shortcut.weight",
        "down.1.block.0.nin_shortcut.weight",
        "model/down_1/block_0/nin_shortcut/W",
    ),
    ("down_1", "attn_0", "norm", "bias"): (
        "down_blocks.1.attentions.0.group_norm.bias",
        "down.1.attn.0.norm.bias",
        "model/down_1/attn_0/norm/beta",
    ),
    ("down_0", "downsample", "conv", "kernel"): (
        "down_blocks.0.downsamplers.0.conv.weight",
        "down.0.downsample.conv.weight",
        "model/down_0/downsample/conv/W",
    ),
    ("mid", "attn_1", "q", "kernel"): (
        "mid_block.attentions.0.to_q.weight",
        "mid.attn_1.q.weight",
        "model/mid/attn_1/q/W",
    ),
    ("mid", "block_2", "conv2", "bias"): (
        "mid_block.resnets.1.conv2.bias",
        "mid.block_2.conv2.bias",
        "model/mid/block_2/conv2/b",
    ),
    ("up_3", "block_2", "norm2", "bias"): (
        "up_blocks.0.resnets.2.norm2.bias",
        "up.3.block.2.norm2.bias",
        "model/up_3/block_2/norm2/beta",
    ),
    ("up_1", "attn_2", "proj_out", "kernel"): (
        "up_blocks.2.attentions.2.to_out.0.weight",
        "up.1.attn.2.proj_out.weight",
        "model/up_1/attn_2/proj_out/W",
    ),
    ("up_1", "upsample", "conv", "bias"): (
        "up_blocks.2.upsamplers.0.conv.bias",
        "up.1.upsample.conv.bias",
        "model/up_1/upsample/conv/b",
    ),
    ("norm_out", "scale"): ("conv_norm_out.weight", "norm_out.weight", "model/norm_out/gamma"),
}


@pytest.mark.parametrize("path", NAMED, ids="/".join)
def test_every_kind_of_parameter_has_its_published_names(path: tuple[str, ...]) -> None:
    names = ("diffusers", "pytorch", "tensorflow")
    assert tuple(NAMINGS[name].name(path, 4) for name in names) == NAMED[path]


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_round_trip_through_other_names_is_exact(naming: str) -> None:
    tensors = tensors_from_params(PARAMS, NAMINGS[naming], 2)
    assert len(tensors) == len(jax.tree.leaves(PARAMS))
    again = params_from_tensors(tensors, NAMINGS[naming], PARAMS, 2)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)


CONFIGS = {
    "the paper's": {},
    "diffusers' own": diffusers_config.SHARED | {"attention_head_dim": 4},
    "another epsilon": {"norm_eps": 1e-3, "freq_shift": 0},
    "heads of one channel": {"attention_head_dim": 1},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_of_diffusers_says_the_network_and_the_network_says_it(
    case: str, tmp_path: pathlib.Path
) -> None:
    network = UNet(3, **FIELDS | {"channels": 8} | CONFIGS[case])
    config = diffusers_config.unet_config(network, (8, 8, 3))
    fields = diffusers_config.unet_fields(config, tmp_path)
    assert fields.pop("class_conditional") is False and UNet(3, **fields) == network
    told = {"num_heads": 1, "attention_head_dim": 0, **CONFIGS[case]}
    assert fields == {**fields, **told}


def test_heads_are_told_to_diffusers_by_their_width_where_that_is_one(tmp_path) -> None:
    several = UNet(3, **FIELDS | {"channels": 8, "num_heads": 4})
    config = diffusers_config.unet_config(several, (8, 8, 3))
    assert config["attention_head_dim"] == 4  # of the 16 channels that attend
    one = diffusers_config.unet_config(several.clone(num_heads=1), (8, 8, 3))
    assert one["attention_head_dim"] is None
    # The width of all that attends is one head, under whichever name.
    fields = diffusers_config.unet_fields(one | {"attention_head_dim": 16}, tmp_path)
    assert fields["attention_head_dim"] == 0 and fields["num_heads"] == 1


def test_a_checkpoint_of_the_original_gives_raw_and_averaged_weights(
    tiny_unet: Callable[[], ConfigDict], tmp_path: pathlib.Path
) -> None:
    """As an npz: both sets, Adam's moments and the step, of which only the last is of use."""
    config = tiny_unet()
    config.model.update(FIELDS)
    experiment = build(config)
    ema, raw = PARAMS, jax.tree.map(lambda x: x + 1.0, PARAMS)
    stored: dict[str, np.ndarray] = {"global_step": np.int64(790_000)}
    stored["beta1_power"] = np.float32(0)
    averaged = tensors_from_params(ema, NAMINGS["tensorflow"], 2)
    for name, value in tensors_from_params(raw, NAMINGS["tensorflow"], 2).items():
        stored |= {name: value, f"{name}/Adam": value, f"{name}/Adam_1": value}
        stored[f"{name}/ExponentialMovingAverage"] = averaged[name]
    np.savez(tmp_path / "cifar10.npz", **stored)
    workdir = tmp_path / "run"
    importer.import_weights(str(tmp_path / "cifar10.npz"), workdir, config, None)
    step, loaded, origin = load_ema(experiment, workdir, devices.make_mesh())
    assert step == 790_000 and origin.weights == "ema"
    jax.tree.map(np.testing.assert_array_equal, loaded, ema)
    export.write_diffusers(experiment, workdir, tmp_path / "raw", "raw")
    tensors = sources.read(str(tmp_path / "raw")).tensors
    back = params_from_tensors(tensors, NAMINGS["diffusers"], raw, 2)
    jax.tree.map(np.testing.assert_array_equal, back, raw)


@pytest.mark.parametrize("wanted", [None, "ema", "raw"])
@pytest.mark.parametrize("held", [("",), ("/ExponentialMovingAverage",), ("", "/Exponential")])
def test_what_the_weights_are_follows_the_source_and_the_user(
    wanted: str | None, held: tuple[str, ...], tiny_unet: Callable[[], ConfigDict], tmp_path
) -> None:
    """Raw weights are 1, averages 2: what is evaluated is what it is called."""
    held = tuple(end and sources.EMA_SUFFIX for end in held)
    config = tiny_unet()
    config.model.update(LEAST)
    experiment = build(config)
    params = param_shapes(UNet(out_channels=1, **LEAST), (8, 8, 1))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    stored = {
        name + end: np.full_like(value, 2.0 if end else 1.0)
        for name, value in tensors_from_params(params, NAMINGS["tensorflow"], 1).items()
        for end in held
    }
    np.savez(tmp_path / "cifar10.npz", **stored)
    arguments = (str(tmp_path / "cifar10.npz"), tmp_path / "run", config, None, wanted)
    if wanted == "raw" and held == (sources.EMA_SUFFIX,):
        with pytest.raises(ValueError, match=r"its weights are ema.*--weights=raw asks for"):
            importer.import_weights(*arguments)
        return
    importer.import_weights(*arguments)
    found = load_ema(experiment, tmp_path / "run", devices.make_mesh())
    values = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(found.params)}
    named = sources.EMA_SUFFIX in held
    assert found.origin.weights == (wanted or ("ema" if named else "as published"))
    if named:
        assert values == {1.0 if wanted == "raw" else 2.0}
    # Out again: a single set is never called what it is not.
    for which in ("ema", "raw"):
        export.write_diffusers(experiment, tmp_path / "run", tmp_path / which, which)
        source = sources.read(str(tmp_path / which))
        both = len(held) == 2 and wanted != "raw"
        assert source.weights == (which if both else found.origin.weights)
        card = " ".join((tmp_path / which / "README.md").read_text().split())
        assert export.SAID[source.weights] in card


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ema_diffusion_cifar10_model/model-790000.safetensors", "ema"),
        ("plain/cifar10-EMA.safetensors", "ema"),
        ("schema/model.safetensors", "as published"),
        ("cinema/emanation.safetensors", "as published"),
        ("plain/model_non_ema.safetensors", "as published"),
        ("without-ema/model.safetensors", "as published"),
        ("no_ema/model.safetensors", "as published"),
    ],
)
def test_a_file_called_ema_is_one(name: str, weights: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    tensors = tensors_from_params(PARAMS, NAMINGS["pytorch"], 2)
    safetensors.numpy.save_file(tensors, path)
    assert sources.read(str(path)).weights == weights


def test_of_a_published_folder_it_is_not_known(tmp_path: pathlib.Path) -> None:
    """Not even where its name has the word, which is its publisher's and not the weights'."""
    folder = shutil.copytree(CIFAR10, tmp_path / "ddpm-ema-cifar10-32")
    assert sources.read(str(folder)).weights == "as published"
    (folder / sources.RUN).write_text(json.dumps({"config": {}, "step": 1, "weights": "best"}))
    with pytest.raises(ValueError, match=r"weights = 'best' must be one of: ema, raw, as publish"):
        sources.read(str(folder))


def test_a_training_s_averaged_copy_becomes_the_ema(tmp_path: pathlib.Path) -> None:
    folder = shutil.copytree(CELEBAHQ, tmp_path / "model")
    shutil.copytree(folder / "unet", folder / "unet_ema")
    config = json.loads((folder / "unet_ema" / "config.json").read_text())
    config |= {"decay": 0.9999, "optimization_step": 1000}
    (folder / "unet_ema" / "config.json").write_text(json.dumps(config))
    path = folder / "unet_ema" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({name: 2 * value for name, value in tensors.items()}, path)
    source = sources.read(str(folder))
    assert source.ema is not None and set(source.files) == {
        "diffusion_pytorch_model.safetensors",
        "unet_ema/diffusion_pytorch_model.safetensors",
    }
    for name, value in tensors.items():
        np.testing.assert_array_equal(source.tensors[name], value)
        np.testing.assert_array_equal(source.ema[name], 2 * value)


PROCESSES = {
    "cosine": (dict(beta_schedule="squaredcos_cap_v2"), "cosine"),
    "quadratic": (dict(beta_schedule="scaled_linear", beta_end=0.03), "quadratic"),
    "given": (dict(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3), "array"),
    "the config's own": (dict(), "linear"),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_the_chain_is_the_scheduler_s(case: str, tmp_path: pathlib.Path) -> None:
    changes, name = PROCESSES[case]
    folder = shutil.copytree(CELEBAHQ, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text()) | changes
    content |= {"variance_type": "fixed_large", "prediction_type": "v_prediction"}
    path.write_text(json.dumps(content | {"clip_sample": False}))
    config = base_config("ddpm-celebahq-256")
    importer.merge(config, sources.read(str(folder)))
    assert config.schedule.name == name and config.variance.name == "fixed_large"
    assert config.parameterization.name == "v" and config.sample.threshold.name == "none"
    if "beta_end" in changes:
        assert config.schedule.beta_end == changes["beta_end"]


def test_a_learned_variance_is_trained_on_with_a_loss_that_teaches_it(
    tmp_path: pathlib.Path,
) -> None:
    folder = shutil.copytree(CIFAR10, tmp_path / "model")
    for name, changes in {
        "config.json": {"out_channels": 6},
        "scheduler_config.json": {"variance_type": "learned_range"},
    }.items():
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(content))
    config = cifar10.get_config()
    importer.merge(config, sources.read(str(folder)))
    assert config.variance.name == "learned_range" and config.loss.name == "hybrid"
    build(config)


def test_a_fixed_variance_is_trained_on_with_a_loss_that_needs_none(
    tmp_path: pathlib.Path,
) -> None:
    """And a short chain is neither previewed nor sampled in more steps than it has."""
    folder = shutil.copytree(CIFAR10, tmp_path / "model")
    content = json.loads((folder / "scheduler_config.json").read_text())
    content |= {"num_train_timesteps": 40}
    (folder / "scheduler_config.json").write_text(json.dumps(content))
    config = cifar10.get_config()
    config.variance = ConfigDict({"name": "learned_range"})
    config.loss = ConfigDict({"name": "hybrid"})
    importer.merge(config, sources.read(str(folder)))
    assert config.variance.name == "fixed_large" and config.loss.name == "simple"
    assert config.train.preview_num_steps == config.sample.num_steps == 0
    assert build(config).method.chain.process.schedule.num_timesteps == 40
    config = cifar10.get_config("eps_vlb_fixed")
    importer.merge(config, sources.read(str(folder)))
    assert config.loss.scale == 1 / 40


@pytest.mark.parametrize(
    ("where", "expected"),
    {
        "hf:google/ddpm-cifar10-32": 50_000,
        "hf:google/ddpm-ema-celebahq-256": 500_000,
        "weights/ema_diffusion_lsun_cat_model/model-1761000.ckpt": 1_800_000,
        "google/ddpm-church-256/": 1_200_000,
        "hf:google/ddpm-ema-bedroom-256": 2_400_000,
    }.items(),
)
def test_published_names_choose_their_config(where: str, expected: int) -> None:
    config = importer.config_by_name(where, None)
    steps = {50_000: 800_000}.get(expected, expected)
    assert config.train.num_steps == steps
