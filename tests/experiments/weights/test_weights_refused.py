"""Everything about a file that would give another model, or none, is refused in words."""

import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion.networks.unet import UNet
from experiments.configs import cifar10_dit, digits
from experiments.files.parameters import params_from_tensors, tensors_from_params
from experiments.weights import diffusers_config, importer, sources
from experiments.weights.unet_names import NAMINGS
from tests.experiments.weights.published_configs import base_config
from tests.fixtures.make_unet_diffusers import param_shapes, random_params
from tests.fixtures.published import FOLDER

PIPELINE = FOLDER / "ddpm-celebahq-256"
MODEL = UNet(
    out_channels=3,
    channels=4,
    channel_multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(4,),
    norm_groups=2,
)
SHAPE = (8, 8, 3)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of a pipeline that diffusers saved, to be spoilt."""
    return shutil.copytree(PIPELINE, tmp_path / "model")


def change(path: pathlib.Path, field: str, value: Any) -> None:
    content = json.loads(path.read_text())
    if value is KeyError:
        del content[field]
    else:
        content[field] = value
    path.write_text(json.dumps(content))


UNET_CASES = {
    **{name: "another" for name in diffusers_config.UNET},
    "attention_head_dim": 7,
    "down_block_types": ["DownBlock2D"] * 6,
    "up_block_types": ["AttnUpBlock2D"] * 6,
    "block_out_channels": [4, 6, 8, 8, 16, 16],
    "out_channels": 6,
    "an_option_of_tomorrow": 1,
}
SCHEDULER_CASES = {
    **{name: "another" for name in diffusers_config.SCHEDULER},
    "_class_name": "PNDMScheduler",
    "beta_schedule": "laplace",
    "prediction_type": "flow",
    "variance_type": "learned",
    "an_option_of_tomorrow": 1,
}


@pytest.mark.parametrize("field", UNET_CASES)
def test_a_network_that_is_another_function_is_refused(field: str, folder: pathlib.Path) -> None:
    change(folder / "unet" / "config.json", field, UNET_CASES[field])
    named = "the blocks" if field.endswith("block_types") else field
    with pytest.raises(ValueError, match=rf"config\.json.*{named}"):
        sources.read(str(folder))


WRONG_KINDS = {
    "unet/config.json": {
        "sample_size": [None, 0, True, [64.5, 64], [64], "64"],
        "in_channels": [None, 3.0, 0],
        "block_out_channels": [None, 4, [4.0, 8.0], ["4"], []],
        "layers_per_block": [None, 2.0, "2", [2], 0],
        "down_block_types": [None, "DownBlock2D", [1]],
        "norm_num_groups": [None, 0, 2.0, "2"],
        "attention_head_dim": [[16], {}, "16"],
        "dropout": ["x", None],
        "_class_name": ["UNet2DConditionModel"],
        "downsample_padding": [False, 2, None],
        "flip_sin_to_cos": [1, "true", None],
        "freq_shift": [1.0, -1, True, None],
        "norm_eps": [0, -1e-5, 1.0, "1e-5", None],
    },
    "scheduler/scheduler_config.json": {
        "beta_start": ["0.0001", None, -1, 0],
        "trained_betas": [0.1, "x", [], [0.1, None], [0.5, float("nan")]],
        "beta_schedule": [["linear"], None],
        "prediction_type": [["epsilon"]],
        "variance_type": [["fixed_small"]],
        "clip_sample": [0, "false", None],
        "num_train_timesteps": [0, 1000.0, "1000"],
    },
}
KINDS = [
    (name, field, value)
    for name, fields in WRONG_KINDS.items()
    for field, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("name", "field", "value"), KINDS)
def test_a_value_of_the_wrong_kind_is_named(
    name: str, field: str, value: Any, folder: pathlib.Path
) -> None:
    change(folder / name, field, value)
    with pytest.raises(ValueError, match=rf"config\.json: {field} = "):
        sources.read(str(folder))


def test_a_list_of_betas_must_be_the_whole_chain(folder: pathlib.Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", "trained_betas", [0.1, 0.2])
    with pytest.raises(ValueError, match="trained_betas has 2 entries and num_train_timesteps = 1"):
        sources.read(str(folder))


@pytest.mark.parametrize("content", ["{}", '{"config": [], "step": 3}', '{"config": {}}'])
def test_a_damaged_record_of_the_run_is_refused(content: str, folder: pathlib.Path) -> None:
    (folder / sources.RUN).write_text(content)
    with pytest.raises(ValueError, match=r"training_run\.json holds no config and step"):
        sources.read(str(folder))


def test_shards_and_variants_are_named(folder: pathlib.Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(ValueError, match=r"but \['diffusion_pytorch_model\.fp16.*save the model"):
        sources.read(str(folder))


def test_an_absent_width_of_heads_is_what_diffusers_takes_it_for(folder: pathlib.Path) -> None:
    change(folder / "unet" / "config.json", "attention_head_dim", KeyError)
    change(folder / "unet" / "config.json", "block_out_channels", [4, 4, 8, 8, 12, 12])
    with pytest.raises(ValueError, match=r"attention_head_dim = 8 \(absent, .*divide the \[12\]"):
        sources.read(str(folder))


@pytest.mark.parametrize("field", SCHEDULER_CASES)
def test_a_chain_that_is_another_is_refused(field: str, folder: pathlib.Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", field, SCHEDULER_CASES[field])
    named = SCHEDULER_CASES[field] if field == "_class_name" else field
    with pytest.raises(ValueError, match=rf"scheduler_config\.json.*{named}"):
        sources.read(str(folder))


def test_an_averaged_network_of_another_shape_is_refused(folder: pathlib.Path) -> None:
    shutil.copytree(folder / "unet", folder / "unet_ema")
    change(folder / "unet_ema" / "config.json", "norm_num_groups", 4)
    with pytest.raises(ValueError, match="describes another network"):
        sources.read(str(folder))


@pytest.mark.parametrize("content", ["{", "[1]", "\0"])
def test_a_damaged_config_is_refused(content: str, folder: pathlib.Path) -> None:
    (folder / "unet" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is truncated or no JSON|holds a list)"):
        sources.read(str(folder))


def test_missing_files_are_named(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither of .*safetensors and .*bin"):
        sources.read(str(folder))
    with pytest.raises(ValueError, match=r"no config\.json, no unet/config\.json"):
        sources.read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing_here does not exist"):
        sources.read(str(tmp_path / "nothing_here"))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".bin", ".pt"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    tensors = tensors_from_params(random_params(param_shapes(MODEL, SHAPE)), DIFFUSERS, 2)
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif suffix == ".npz":
        np.savez(path, **tensors)
    else:
        shutil.copy(FOLDER / "ddpm-cifar10-32" / "diffusion_pytorch_model.bin", path)
    sources.read(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated|damaged"):
        sources.read(str(path))


def test_other_damage_to_an_npz_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.npz"
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    with pytest.raises(ValueError, match="no npz of plain arrays"):
        sources.read(str(path))
    np.savez(path, **{"model/conv_in/W": np.zeros(3), "global_step": np.zeros(2)})
    with pytest.raises(ValueError, match="global_step is float64"):
        sources.read(str(path))


def test_an_array_of_objects_is_not_unpickled(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "model.npz", **{"model/conv_in/W": np.array([print], object)})
    with pytest.raises(ValueError, match="no npz of plain arrays"):
        sources.read(str(tmp_path / "model.npz"))


def test_unknown_files_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in none of \.safetensors, \.npz"):
        sources.read(str(tmp_path / "model.onnx"))
    np.savez(tmp_path / "model.npz", weight=np.zeros(3))
    with pytest.raises(ValueError, match="names its tensors in none of the known ways"):
        sources.read(str(tmp_path / "model.npz"))
    inside = FOLDER / "ddpm-cifar10-32" / "diffusion_pytorch_model.bin"
    with pytest.raises(ValueError, match=r"config\.json beside it.*--from=.*ddpm-cifar10-32"):
        sources.read(str(inside))


def test_a_checkpoint_of_tensorflow_asks_for_it_or_tells_the_way_round(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "model.ckpt-790000.index").write_bytes(b"")
    for name in ("model.ckpt-790000", "model.ckpt-790000.index"):
        with pytest.raises(ImportError, match=r"python -c .*load_checkpoint.*ckpt-790000 weights"):
            sources.read(str(tmp_path / name))


DIFFUSERS = NAMINGS["diffusers"]
Spoil = Callable[[dict[str, np.ndarray]], Any]


def spoil(change: Spoil) -> None:
    """Fills the network from tensors of which `change` has spoilt one."""
    shapes = param_shapes(MODEL, SHAPE)
    tensors = tensors_from_params(random_params(shapes), DIFFUSERS, 2)
    change(tensors)
    params_from_tensors(tensors, DIFFUSERS, shapes, 2)


NAME = "mid_block.attentions.0.to_q.weight"
SPOILT: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda x: x.pop(NAME), f"1 tensors are missing: {NAME}"),
    "extra": (lambda x: x.update(more=np.zeros(1)), "1 have no place in it: more"),
    "many": (lambda x: x.clear(), r"missing: .* and \d+ more"),
    "shape": (
        lambda x: x.update({NAME: np.zeros((8, 9), np.float32)}),
        r"to_q\.weight is \(8, 9\).* needs \(8, 8\) \(stored as \(8, 8\)\)",
    ),
    "kernel size": (
        lambda x: x.update({NAME: np.zeros((8, 8, 3, 3), np.float32)}),
        r"to_q\.weight is \(8, 8, 3, 3\)",
    ),
    "twice": (
        lambda x: x.update({NAME.replace("to_q", "query"): x[NAME]}),
        r"given twice, as .*to_q\.weight and as .*query\.weight",
    ),
    "dtype": (lambda x: x.update({NAME: x[NAME].astype(np.float64)}), "is float64; float32"),
    "integers": (lambda x: x.update({NAME: x[NAME].astype(np.int32)}), "is int32; float32"),
    "nan": (lambda x: x[NAME].fill(np.nan), r"to_q\.weight holds values that are not finite"),
    "infinite": (lambda x: x[NAME].fill(np.inf), "not finite"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_tensors_that_do_not_fit_are_refused(case: str) -> None:
    change, message = SPOILT[case]
    spoil(lambda tensors: None)
    with pytest.raises(ValueError, match=message):
        spoil(change)


def test_half_precision_is_taken_over_exactly() -> None:
    import ml_dtypes

    shapes = param_shapes(MODEL, SHAPE)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        params = random_params(shapes)
        tensors = tensors_from_params(params, DIFFUSERS, 2)
        halves = {name: value.astype(dtype) for name, value in tensors.items()}
        filled = params_from_tensors(halves, DIFFUSERS, shapes, 2)
        expected = jax.tree.map(lambda x, to=dtype: x.astype(to).astype(np.float32), params)
        jax.tree.map(np.testing.assert_array_equal, filled, expected)


def test_the_network_of_the_config_must_be_the_file_s(tmp_path: pathlib.Path) -> None:
    tensors = tensors_from_params(random_params(param_shapes(MODEL, SHAPE)), DIFFUSERS, 2)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors does not give .*channels = 32"):
        importer.import_weights(
            str(tmp_path / "model.safetensors"), tmp_path / "run", digits.get_config(), None
        )
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_and_unknown_data_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"is for images \(64, 64, 3\), and .*'digits'.* has \(8"):
        importer.import_weights(str(PIPELINE), tmp_path / "run", digits.get_config(), None)
    with pytest.raises(ValueError, match=r"'some/model' says which data .*--config=.*cifar10\.py"):
        importer.config_by_name("some/model", (256, 256, 3))


def test_another_network_than_theirs_is_refused(tmp_path: pathlib.Path) -> None:
    config = cifar10_dit.get_config()
    with pytest.raises(ValueError, match="config.model.name = 'dit': .*'unet'.*is a DiT"):
        importer.import_weights(str(FOLDER / "ddpm-cifar10-32"), tmp_path / "run", config, None)
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=r"is not empty\. Choose another --to"):
            importer.import_weights(str(PIPELINE), taken, None, None)


@pytest.mark.slow
def test_an_interruption_leaves_nothing_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    config = base_config("ddpm-celebahq-256")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importer, "write_config", interrupt)
        importer.import_weights(str(PIPELINE), tmp_path / "run", config, None)
    assert not list(tmp_path.iterdir())
    importer.import_weights(str(PIPELINE), tmp_path / "run", config, None)
    with pytest.raises(ValueError, match="is a working directory of this program already"):
        sources.read(str(tmp_path / "run"))


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_download_that_fails_says_what_to_bring(
    revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

    def refuse(name: str, **options: Any) -> None:
        raise hub.errors.OfflineModeIsEnabled("no network")

    monkeypatch.setattr(hub, "model_info", refuse)
    at = " --revision main" if revision else ""
    with pytest.raises(ValueError, match=rf"(?s)no network.*google/x{at} --local-dir x.*=x"):
        sources.read(f"hf:google/x{revision}")
    with pytest.raises(ValueError, match=r"hf:x is no hf:ORGANISATION/MODEL"):
        sources.read("hf:x")


def test_what_was_downloaded_before_is_found_without_a_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    snapshot = tmp_path / "hub" / "models--google--x" / "snapshots" / ("0" * 40)
    shutil.copytree(PIPELINE, snapshot)
    refs = tmp_path / "hub" / "models--google--x" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert sources.read("hf:google/x").image_shape == (64, 64, 3)


def test_without_the_hub_s_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[hub\]'"):
        sources.read("hf:google/ddpm-cifar10-32")
