"""What must agree: between numbers that are compared, and between a run and its continuation.

Also how a config that was saved long ago reads under the names that fields have now.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from experiments.workdir.origin import NOTHING

# What the parameters of a checkpoint mean, and so cannot change after training.
MODEL = (
    *("method", "encoder", "data.name", "schedule", "path", "parameterization", "variance"),
    *("likelihood", "text", "model"),
)
# Variances with which the network has nothing to do, so that one may replace another.
FIXED_VARIANCES = ("fixed_small", "fixed_large")
# Of `model`: how the network is computed and trained, and not what its parameters mean.
COMPUTED = ("dtype", "remat", "dropout")
# What cannot change between the start of a training run and its continuation.
TRAINING = (
    *(*MODEL, "seed", "loss", "timesteps", "optimizer", "clip", "ema_decay"),
    *("ema_warmup", "precision", "train.batch_size", "train.balance", "train.flip"),
)
# What decides which model a run trains, apart from its seed, where its data lies and how its
# classes are called.
DEFINING = ("data", *(f for f in TRAINING if f not in ("seed", "data.name")), "train.num_steps")
PLACES = (
    *("data.data_dir", "data.path", "data.classes", "encoder.workdir"),
    "encoder.checkpoint",  # encoder.identity says which it was
)
# Of a U-Net: what diffusers' has too, as it was before it could be told.
OF_THE_PAPER = MappingProxyType(
    {
        **{"attention_head_dim": 0, "norm_eps": 1e-6, "downsample_padding": 0},
        **{"flip_sin_to_cos": False, "freq_shift": 1},
    }
)
# What a comparison of numbers may be about; every other field of the protocols must agree.
FREE = (
    *("checkpoint", "checkpoint_step", "weights", "variance"),
    *("sampler", "num_steps", "spacing", "threshold", "guidance", "seed"),
    *("last_step", "clip_denoised", "encoder", "dtype"),
)


def fields(config: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The values at paths of names, such as `train.batch_size`, of those that the config has."""
    found = {}
    for path in paths:
        section: Any = config
        *sections, name = path.split(".")
        for part in sections:
            section = section.get(part, {})
        if name in section:
            found[path] = section[name]
    return found


def meaning(path: str, value: Any) -> Any:
    """A field of MODEL without what parameters do not depend on."""
    if path == "variance" and value["name"] in FIXED_VARIANCES:
        return "fixed"
    if path == "model":
        return {name: item for name, item in value.items() if name not in COMPUTED}
    return value


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, as JSON has it, under the names that its fields have now.

    The clip `per_core` once had images_per_core, the examples of a group, where it has num_cores.
    Every model was of pixels and told no words, and trained on all images alike; every device had
    all parameters, and no checkpoint stayed for good. The precision of products was the default of
    jax before it was a field, diffusion the only method; of a U-Net no label was dropped, and what
    diffusers' does otherwise was as in the paper; no network was given features of its input. After
    its warm-up the learning rate stayed, no weight decayed, and the average had no warm-up; losses
    compared what the network predicts. Of sampling, a flag said whether x_0 is clipped, and the
    timesteps of every sampler were evenly spaced. Of pictures of one's own, the folders were
    numbered by the alphabet, and their names not kept. A VAE below latents was of its newest
    checkpoint.
    """
    config = {"precision": "default", "method": {"name": "diffusion"}, "ema_warmup": 0.0, **config}
    config = {"encoder": {"name": "pixels"}, "mesh": {"data": 0, "fsdp": 1}, **config}
    match config:
        case {"encoder": {"name": "vae", **encoder}}:
            config["encoder"] = {"name": "vae", "checkpoint": 0, **encoder}
    match config:
        case {"train": {**train}}:
            config["train"] = {"balance": "images", "keep_every": 0, **train}
    match config:
        case {"data": {"name": "image_folder", **data}}:
            classes: dict[str, Any] = {"classes": []} if data.get("num_classes") else {}
            own = {"name": "image_folder", "value_range": [], **classes}
            config["data"] = own | data
    if "schedule" in config or "path" in config:
        config = {"text": {"name": "none"}, **config}
    match config:
        case {"loss": {"name": "simple" | "hybrid"} as loss}:
            config["loss"] = {"space": {"name": "output"}, **loss}
    rate = {"cosine_steps": 0, "final_learning_rate": 0.0}
    match config:
        case {"optimizer": {"name": "adam"} as optimizer}:
            config["optimizer"] = rate | {"weight_decay": 0.0, **optimizer}
        case {"optimizer": {"name": "rmsprop"} as optimizer}:
            config["optimizer"] = rate | optimizer
    match config:
        case {"sample": {"clip_denoised": clip, **sample}}:
            config["sample"] = {"threshold": _threshold(bool(clip)), **sample}
    match config:
        case {"sample": {**sample}}:
            config["sample"] = {"spacing": {"name": "uniform"}, **sample}
    match config:
        case {"model": {"name": "unet"} as model}:
            words: dict[str, Any] = {"cross_attention_resolutions": []}
            config["model"] = {"label_dropout": 0.0, **words, **OF_THE_PAPER, **model}
    match config:
        case {"model": {"name": "unet" | "dit"} as model}:
            config["model"] = {"fourier_features": [], **model}
    match config:
        case {
            "clip": {"images_per_core": int(images), **clip},
            "train": {"batch_size": int(batch_size)},
        } if images > 0:
            return {**config, "clip": {**clip, "num_cores": batch_size // images}}
    return config


def _threshold(clip_denoised: bool) -> dict[str, str]:
    """What a flag once said."""
    return {"name": "clip" if clip_denoised else "none"}


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, under dotted names."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def training_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a resolved config as JSON has it: the fields that decide which model is trained."""
    return {
        name: value
        for name, value in flat(renewed(config)).items()
        if name not in PLACES and any(f"{name}.".startswith(f"{field}.") for field in DEFINING)
    }


def renewed_protocol(
    protocol: Mapping[str, Any], known: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """An older protocol with the fields that it lacks, as they were when it was written.

    Args:
        known: dotted fields of the config that it was measured under; of what is not known, the
            network computed in float32, and noise was drawn once.

    The sampler was its name, its timesteps always evenly spaced; its estimates of x_0 were clipped
    or not, and nothing was guided; every data set counted as one of 256 levels; samples were of all
    classes in turn; nothing was held out of train, but the best checkpoint was chosen by something
    that the protocol does not tell.
    """
    renewed = dict(protocol)
    missing: dict[str, Any] = {}
    if isinstance(renewed.get("sampler"), str):
        renewed["sampler"] = {"name": renewed["sampler"]}
    if "sampler" in renewed:
        missing |= {"labels": "all", "last_step": "x_0", "guidance": {"scale": 1.0}}
        if renewed.get("spacing", "even") == "even":
            renewed["spacing"] = {"name": "uniform"}
        if "clip_denoised" in renewed:
            renewed["threshold"] = _threshold(renewed.pop("clip_denoised"))
    if "sampler" in renewed or "decoder" in renewed:
        latest = renewed.get("checkpoint", "latest") == "latest"
        selected_on = NOTHING if latest else "not recorded"
        missing |= {"precision": "default", "held_out": 0, "selected_on": selected_on}
    if "decoder" in renewed:
        missing["num_levels"] = 256
        if "baselines" in str(renewed.get("quantity")):
            missing["num_draws"] = known.get("evaluate.num_draws", 1)
    if "checkpoint_step" in renewed:
        missing["dtype"] = known.get("model.dtype", "float32")
        missing |= {"seed": known["seed"]} if "seed" in known else {}
    return renewed | {name: value for name, value in missing.items() if name not in renewed}


def written(value: Any) -> str:
    """A protocol's value for people: a choice {name, **options} as name or name(option=...)."""
    if not isinstance(value, Mapping):
        return str(value)
    options = ", ".join(f"{key}={option}" for key, option in value.items() if key != "name")
    if "name" not in value:
        return options
    return f"{value['name']}({options})" if options else str(value["name"])


def differences(
    protocols: Sequence[Mapping[str, Any] | None], free: Sequence[str] = FREE
) -> dict[str, list[Any]]:
    """Fields in which the protocols that exist differ and must not: name -> value in each run.

    Args:
        protocols: of one quantity, run by run; None where a run lacks it.
        free: fields that may differ.
    """
    protocols = [None if protocol is None else renewed_protocol(protocol) for protocol in protocols]
    present = [protocol for protocol in protocols if protocol is not None]
    names = sorted({name for protocol in present for name in protocol} - set(free))
    result = {}
    for name in names:
        values = [None if p is None else p.get(name, "absent") for p in protocols]
        if len({repr(v) for v, p in zip(values, protocols, strict=True) if p is not None}) > 1:
            result[name] = values
    return result
