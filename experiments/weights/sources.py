"""Where weights come from: diffusers' folders and single files, on disk or the Hugging Face hub.

Reading gives tensors and what the source says about them; nothing here knows a config.
"""

import contextlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.files.atomic import read_json
from experiments.files.tensors import READERS, sha256
from experiments.weights import diffusers_config
from experiments.weights.unet_names import NAMINGS
from experiments.workdir.config import config_from_dict
from experiments.workdir.origin import AS_PUBLISHED, EMA, KINDS

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
RUN = "training_run.json"  # what this program adds to a diffusers folder that it writes
EMA_NAME = re.compile(r"(?<![a-z])(?<!non.)(?<!not.)(?<!no.)(?<!without.)ema(?![a-z])")
EMA_SUFFIX = "/ExponentialMovingAverage"
# What a checkpoint of the original holds besides the network's two sets of weights.
TRAINING_STATE = re.compile(
    r"(.*/Adam(_1)?|beta[12]_power|global_step)(/ExponentialMovingAverage)?"
)
TO_NPZ = (
    'python -c "import sys, numpy, tensorflow as tf; r = tf.train.load_checkpoint(sys.argv[1]); '
    "numpy.savez(sys.argv[2], **{{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()}})"
    '" {path} weights.npz'
)


class Source(NamedTuple):
    """Weights as they were found.

    naming: a key of NAMINGS.
    tensors, ema: name -> array; ema is None where the source has one set of weights only.
    weights: what a single set is, one of `origin.KINDS`.
    model: the config's `model` fields that the source states.
    process: `schedule`, `parameterization`, `variance`, `threshold`, where it states them.
    image_shape: (H, W, C) where it states it.
    run: the config of this program, where it wrote the source.
    step: training steps behind the weights, where the source says.
    files: the files read, by name, with their SHA-256.
    """

    naming: str
    tensors: Mapping[str, np.ndarray]
    files: Mapping[str, str]
    ema: Mapping[str, np.ndarray] | None = None
    weights: str = AS_PUBLISHED
    model: Mapping[str, Any] = MappingProxyType({})
    process: Mapping[str, Any] = MappingProxyType({})
    image_shape: tuple[int, int, int] | None = None
    run: ConfigDict | None = None
    step: int | None = None


def _read_tensorflow(prefix: Path) -> dict[str, np.ndarray]:
    try:
        import tensorflow
    except ImportError:
        raise ImportError(
            f"{prefix} is a TensorFlow checkpoint, which only TensorFlow reads, and it is not "
            "installed. Where it is, this line makes an npz that --from takes:\n  "
            + TO_NPZ.format(path=shlex.quote(str(prefix)))
        ) from None
    reader = tensorflow.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _naming_of(names: Mapping[str, Any], path: Path) -> str:
    starts = {"down_blocks.": "diffusers", "down.": "pytorch", "model/": "tensorflow"}
    for start, naming in starts.items():
        if any(name.startswith(start) for name in names):
            return naming
    raise ValueError(
        f"{path} names its tensors in none of the known ways ({', '.join(NAMINGS)}): "
        f"{', '.join(list(names)[:4])}, ..."
    )


def _split_tensorflow(tensors: Mapping[str, np.ndarray], source: Source) -> Source:
    """The original's checkpoint: raw weights, their EMA, and training state, which stays behind."""
    step = tensors.get("global_step")
    if step is not None and (step.size != 1 or not np.issubdtype(step.dtype, np.integer)):
        raise ValueError(f"global_step is {step.dtype}{step.shape}, not one whole number.")
    kept = {name: value for name, value in tensors.items() if not TRAINING_STATE.fullmatch(name)}
    ema = {
        name.removesuffix(EMA_SUFFIX): value
        for name, value in kept.items()
        if name.endswith(EMA_SUFFIX)
    }
    raw = {name: value for name, value in kept.items() if not name.endswith(EMA_SUFFIX)}
    source = source._replace(step=None if step is None else int(step.item()))
    if raw:
        return source._replace(tensors=raw, ema=ema or None)
    return source._replace(tensors=ema, weights=EMA)


def read_file(path: Path) -> Source:
    """One file of weights, which says nothing about the network that they are for.

    A name of the file or of its folder with the word ema in it says what they are.

    Raises:
        ValueError: for a file of another kind, a damaged one, or unknown names.
    """
    if path.suffix not in READERS:
        raise ValueError(
            f"{path} ends in none of {', '.join(READERS)}, and is no folder of diffusers and no "
            "prefix of a TensorFlow checkpoint."
        )
    if (path.parent / "config.json").is_file():
        raise ValueError(
            f"{path} has a config.json beside it, which says what the weights mean: name the "
            f"folder, --from={shlex.quote(str(path.parent))}"
        )
    tensors = READERS[path.suffix](path)
    naming = _naming_of(tensors, path)
    source = Source(naming, tensors, {path.name: sha256(path)})
    if any(EMA_NAME.search(name.lower()) for name in (path.name, path.resolve().parent.name)):
        source = source._replace(weights=EMA)
    return _split_tensorflow(tensors, source) if naming == "tensorflow" else source


def _read_unet(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    present = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not present:
        others = sorted(path.name for path in folder.glob("diffusion_pytorch_model*"))
        raise ValueError(
            f"{folder} holds neither of {' and '.join(WEIGHTS)}, but {others or 'no weights'}. "
            "Shards and variants are not read: save the model whole, with save_pretrained(FOLDER, "
            "max_shard_size='10GB')."
        )
    return READERS[present[0].suffix](present[0]), {present[0].name: sha256(present[0])}


def read_folder(folder: Path) -> Source:
    """A diffusers folder: of a pipeline (unet/, scheduler/), flat, or of a training's unet_ema/.

    Raises:
        ValueError: for a config that this network does not compute, or damaged files.
    """
    unet = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config = read_json(unet / "config.json")
    if not {"parameterization", "likelihood"}.isdisjoint(config):
        raise ValueError(
            f"{folder} is a working directory of this program already. --to=diffusers --out=FOLDER "
            "writes it for diffusers."
        )
    fields = diffusers_config.unet_fields(config, unet / "config.json")
    shape = diffusers_config.sample_shape(config)
    tensors, files = _read_unet(unet)
    source = Source("diffusers", tensors, files, model=fields, image_shape=shape)

    averaged = folder / "unet_ema" / "config.json"
    if unet != folder and averaged.is_file():
        if diffusers_config.unet_fields(read_json(averaged), averaged) != fields:
            raise ValueError(f"{averaged} describes another network than {unet / 'config.json'}.")
        ema, ema_files = _read_unet(averaged.parent)
        files = {**files, **{f"unet_ema/{name}": value for name, value in ema_files.items()}}
        source = source._replace(ema=ema, files=files)

    schedulers = [folder / name / "scheduler_config.json" for name in ("scheduler", ".")]
    found = [path for path in schedulers if path.is_file()]
    if found:
        process = diffusers_config.scheduler_fields(read_json(found[0]), found[0])
        doubled = 2 if process["variance"]["name"] == "learned_range" else 1
        if config["out_channels"] != doubled * config["in_channels"]:
            raise ValueError(
                f"{unet / 'config.json'}: out_channels = {config['out_channels']} for "
                f"{config['in_channels']} image channels does not go with the variance "
                f"{process['variance']['name']} of {found[0]}."
            )
        source = source._replace(process=process)
    if (folder / RUN).is_file():
        run = read_json(folder / RUN)
        if not isinstance(run.get("config"), dict) or type(run.get("step")) is not int:
            raise ValueError(f"{folder / RUN} holds no config and step. Remove it to do without.")
        weights = run.get("weights", AS_PUBLISHED)
        if weights not in KINDS:
            raise ValueError(
                f"{folder / RUN}: weights = {weights!r} must be one of: {', '.join(KINDS)}."
            )
        config = config_from_dict(run["config"])
        source = source._replace(run=config, step=run["step"], weights=weights)
    return source


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face hub, ORGANISATION/MODEL or ORGANISATION/MODEL@REV.

    Raises:
        ImportError: without the extra `hub`.
        ValueError: where it cannot be had, with what to do on another machine.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            "--from=hf:... needs the package huggingface_hub: pip install -e '.[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    folder = repository.rpartition("/")[2]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"hf:{name} is no hf:ORGANISATION/MODEL.")
    try:
        # Not list_repo_files, which tries for half a minute where there is no network.
        about = huggingface_hub.model_info(repository, revision=revision or None, timeout=20)
        listed = [file.rfilename for file in about.siblings or []]
        weights = [file for file in listed if Path(file).name == WEIGHTS[0]] or [
            file for file in listed if Path(file).name == WEIGHTS[1]
        ]
        path = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=["*.json", *weights]
        )
    except Exception as error:  # the library raises what its HTTP client raises
        with contextlib.suppress(Exception):
            return Path(
                huggingface_hub.snapshot_download(
                    repository, revision=revision or None, local_files_only=True
                )
            )
        at = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"{repository} could not be downloaded ({type(error).__name__}: {error}).\n"
            f"On a machine with a network: hf download {repository}{at} --local-dir {folder}\n"
            f"(config.json, scheduler_config.json and {WEIGHTS[0]} are enough); copy the folder "
            f"here, then --from={folder}."
        ) from error
    return Path(path)


def read(where: str) -> Source:
    """The weights that --from names.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for what cannot be read, see the functions above.
        ImportError: where reading needs a package that is not installed.
    """
    if where.startswith("hf:"):
        return read_folder(download(where.removeprefix("hf:")))
    path = Path(where).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "unet/config.json")):
            raise ValueError(
                f"{path} is no folder of diffusers: no config.json, no unet/config.json."
            )
        return read_folder(path)
    index = path.with_name(path.name.removesuffix(".index") + ".index")
    if index.is_file():
        prefix = index.with_suffix("")
        beside = sorted(prefix.parent.glob(f"{prefix.name}.*"))
        source = Source("tensorflow", {}, {path.name: sha256(path) for path in beside})
        return _split_tensorflow(_read_tensorflow(prefix), source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    return read_file(path)
