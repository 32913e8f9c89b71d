"""diffusers' folders: a UNet2DModel's config.json, a scheduler's, and the weights beside them.

Several fields of these configs change what the network computes without changing a single shape,
so that wrong weights would load in silence. Every field is looked at: known and as this network has
it, or refused with the reason.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion import schedules
from diffusion.networks.unet import UNet
from experiments.lookup import lookup

DIFFUSERS_VERSION = "0.32.0"  # the oldest that the tests of the exported folder stand for


class Field(NamedTuple):
    """A field that this network fixes."""

    value: Any  # what it must be
    default: Any  # what diffusers reads where it is absent
    why: str


UNET = MappingProxyType(
    {
        "center_input_sample": Field(False, False, "images come in [-1, 1]"),
        "time_embedding_type": Field("positional", "positional", "the embedding is fixed"),
        "time_embedding_dim": Field(None, None, "the embedding is four times the width"),
        "mid_block_type": Field("UNetMidBlock2D", "UNetMidBlock2D", "the only middle there is"),
        "mid_block_scale_factor": Field(1, 1, "residuals are added as they are"),
        "downsample_type": Field("conv", "conv", "levels are joined by convolutions"),
        "upsample_type": Field("conv", "conv", "levels are joined by convolutions"),
        "act_fn": Field("silu", "silu", "the activation is swish, which diffusers calls silu"),
        "attn_norm_num_groups": Field(None, None, "the attention's GroupNorm is like the others"),
        "resnet_time_scale_shift": Field("default", "default", "the time is added"),
        "add_attention": Field(True, True, "the middle attends"),
        "class_embed_type": Field(None, None, "labels cannot be converted"),
        "num_class_embeds": Field(None, None, "labels cannot be converted"),
        "num_train_timesteps": Field(None, None, "labels cannot be converted"),
    }
)
SCHEDULER = MappingProxyType(
    {
        "thresholding": Field(False, False, "x_0 is clipped at a fixed value or not at all"),
        "clip_sample_range": Field(1.0, 1.0, "x_0 is clipped to [-1, 1]"),
        "rescale_betas_zero_snr": Field(False, False, "the betas are taken as they are"),
        "steps_offset": Field(0, 0, "timesteps count from 0"),
    }
)


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _wholes(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_whole, value))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(name) is str for name in value)


def _fractions(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple)
        and bool(value)
        and all(_number(beta) and 0 < beta <= 1 for beta in value)
    )


# Fields of both networks, under one name, and what diffusers reads where they are absent.
SHARED = MappingProxyType(
    {"norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}
)
HEAD_DIM = 8  # what diffusers reads where attention_head_dim is absent
# What is read below: how a value is recognised, and what it is called.
READ = MappingProxyType(
    {
        "sample_size": (
            lambda v: _whole(v) or (_wholes(v) and len(v) == 2),
            "the side of the images in pixels, or their height and width",
        ),
        "in_channels": (_whole, "a positive whole number"),
        "out_channels": (_whole, "a positive whole number"),
        "block_out_channels": (_wholes, "a list of positive whole numbers"),
        "layers_per_block": (_whole, "a positive whole number"),
        "down_block_types": (_names, "a list of names"),
        "up_block_types": (_names, "a list of names"),
        "attention_head_dim": (lambda v: v is None or _whole(v), "null or a whole number"),
        "norm_num_groups": (_whole, "a positive whole number"),
        "dropout": (_number, "a number"),
        "norm_eps": (lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1"),
        "flip_sin_to_cos": (lambda v: type(v) is bool, "true or false"),
        "freq_shift": (lambda v: type(v) is int and v >= 0, "a whole number of at least 0"),
        "downsample_padding": (lambda v: type(v) is int and v in (0, 1), "0 or 1"),
        "_class_name": (lambda v: v == "UNet2DModel", "UNet2DModel"),
    }
)
SCHEDULER_READ = MappingProxyType(
    {
        "num_train_timesteps": (_whole, "a positive whole number"),
        "beta_start": (lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1"),
        "beta_end": (lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1"),
        "beta_schedule": (lambda v: type(v) is str, "a name"),
        "trained_betas": (_fractions, "null or a list of numbers between 0 and 1"),
        "variance_type": (lambda v: type(v) is str, "a name"),
        "clip_sample": (lambda v: type(v) is bool, "true or false"),
        "prediction_type": (lambda v: type(v) is str, "a name"),
    }
)
# Left in the config by diffusers' EMA class, and of no account to the network.
EMA_FIELDS = frozenset(
    (
        *("decay", "min_decay", "inv_gamma", "power", "optimization_step", "update_after_step"),
        "use_ema_warmup",
    )
)
# How strided sampling picks its steps, which is this program's own choice, and old leftovers.
SCHEDULER_IGNORED = frozenset(
    (
        *("timestep_spacing", "dynamic_thresholding_ratio", "sample_max_value", "timestep_values"),
        *("set_alpha_to_one", "tensor_format", "skip_prk_steps"),
    )
)
SCHEDULES = MappingProxyType(
    {"linear": "linear", "scaled_linear": "quadratic", "sigmoid": "sigmoid"}
)
PREDICTIONS = MappingProxyType({"epsilon": "eps", "sample": "x_0", "v_prediction": "v"})
VARIANCE_TYPES = MappingProxyType(
    {
        "fixed_small": "fixed_small",
        "fixed_small_log": "fixed_small",
        "fixed_large": "fixed_large",
        "learned_range": "learned_range",
    }
)


def _check(
    config: Mapping[str, Any],
    fields: Mapping[str, Field],
    read: Mapping[str, tuple[Callable[[Any], bool], str]],
    ignored: frozenset[str],
    path: Path,
) -> None:
    for name, field in fields.items():
        value = config.get(name, field.default)
        if value != field.value or isinstance(value, bool) != isinstance(field.value, bool):
            how = "" if name in config else " (absent, which diffusers reads so)"
            raise ValueError(
                f"{path}: {name} = {value!r}{how}, and this network has {field.value!r}: "
                f"{field.why}. These weights would load and give wrong images."
            )
    for name, (recognised, kind) in read.items():
        if name in config and not recognised(config[name]):
            raise ValueError(f"{path}: {name} = {config[name]!r} must be {kind}.")
    known = ignored.union(read, fields)
    unknown = {name for name in config if not name.startswith("_")} - known
    if unknown:
        raise ValueError(
            f"{path} has the fields {sorted(unknown)}, whose meaning is not known here. Remove "
            "them if they change nothing in what the network computes."
        )


def unet_fields(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our `config.model` for diffusers' UNet2DModel.

    Args:
        config: the content of its config.json.
        path: of that file, named in errors.

    Raises:
        ValueError: for any field under which the two networks are not the same function.
    """
    _check(config, UNET, READ, EMA_FIELDS, path)
    missing = {"block_out_channels", "down_block_types", "up_block_types", "in_channels"}
    missing = (missing | {"out_channels", "sample_size", "layers_per_block"}) - set(config)
    if missing:
        raise ValueError(f"{path} does not say {sorted(missing)}.")
    widths, down = list(config["block_out_channels"]), list(config["down_block_types"])
    attention = [name == "AttnDownBlock2D" for name in down]
    if down != ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention] or config[
        "up_block_types"
    ] != ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)]:
        raise ValueError(
            f"{path}: the blocks {down} and {config['up_block_types']} are not plain or attending "
            "blocks, the same on the way down and up."
        )
    if len(widths) != len(down) or any(width % widths[0] for width in widths):
        raise ValueError(
            f"{path}: block_out_channels = {widths} must be one width per block, all of them "
            "multiples of the first."
        )
    attended = {width for width, a in zip(widths, attention, strict=True) if a} | {widths[-1]}
    head = config.get("attention_head_dim", HEAD_DIM)
    if head is not None and any(width % head for width in attended):
        how = "" if "attention_head_dim" in config else " (absent, which diffusers reads so)"
        raise ValueError(
            f"{path}: attention_head_dim = {head}{how} does not divide the {sorted(attended)} "
            "channels that attend, of which diffusers then leaves some out. This network leaves "
            "out none."
        )
    height = sample_shape(config)[0]
    return dict(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_blocks=config["layers_per_block"],
        attention_resolutions=tuple(height // 2**i for i, a in enumerate(attention) if a),
        num_heads=1,
        attention_head_dim=0 if head is None or attended == {head} else head,
        norm_groups=config.get("norm_num_groups", 32),
        **{name: config.get(name, default) for name, default in SHARED.items()},
        class_conditional=False,
    )


def sample_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of the images of a config that `unet_fields` has accepted."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, config["in_channels"]


def _beta_spec(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    name, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    betas = config.get("trained_betas")
    if betas is not None:
        if len(betas) != steps:
            raise ValueError(
                f"{path}: trained_betas has {len(betas)} entries and num_train_timesteps = {steps}."
            )
        return dict(name="array", betas=tuple(map(float, betas)))
    if name == "squaredcos_cap_v2":
        return dict(name="cosine", num_timesteps=steps)
    if name not in SCHEDULES:
        raise ValueError(
            f"{path}: beta_schedule = {name!r} is not known; known are {', '.join(SCHEDULES)} and "
            "squaredcos_cap_v2, or the numbers themselves in trained_betas."
        )
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    return dict(name=SCHEDULES[name], num_timesteps=steps, beta_start=start, beta_end=end)


def scheduler_fields(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our `schedule`, `parameterization`, `variance` and `threshold` for a DDPMScheduler.

    Raises:
        ValueError: for another scheduler, or any field that ours does not compute.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if kind != "DDPMScheduler":
        raise ValueError(
            f"{path} describes a {kind}; only a DDPMScheduler says what the network was trained "
            "for. Save the pipeline with one, or remove this file: the chain is then --config's."
        )
    _check(config, SCHEDULER, SCHEDULER_READ, SCHEDULER_IGNORED, path)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"{path}: prediction_type = {prediction!r} is not one of {', '.join(PREDICTIONS)}."
        )
    variance = config.get("variance_type", "fixed_small")
    if variance not in VARIANCE_TYPES:
        raise ValueError(
            f"{path}: variance_type = {variance!r} is not one of {', '.join(VARIANCE_TYPES)}. "
            "(diffusers takes `learned` for a variance where the paper's network gives its "
            "logarithm, and the root of a negative number for `fixed_large_log`.)"
        )
    return dict(
        schedule=_beta_spec(config, path),
        parameterization=dict(name=PREDICTIONS[prediction]),
        variance=dict(name=VARIANCE_TYPES[variance]),
        threshold=dict(name="clip" if config.get("clip_sample", True) else "none"),
    )


def unet_config(network: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The config.json under which diffusers' UNet2DModel is this network.

    Raises:
        ValueError: for a network that it cannot be: as many heads at other widths, labels, or
            features of its input.
    """
    height, width, channels = image_shape
    if network.fourier_features:
        raise ValueError(
            f"model.fourier_features = {network.fourier_features}: diffusers' UNet2DModel is given "
            "the image alone, so this network cannot be written for it."
        )
    head, attended = network.attention_head_dim or None, set(network.attending(height))
    if head is None and network.num_heads > 1 and len(attended) == 1:
        head = attended.pop() // network.num_heads
    if (head is None and network.num_heads > 1) or network.num_classes is not None:
        raise ValueError(
            f"model.num_heads = {network.num_heads}, num_classes = {network.num_classes}: "
            "diffusers has heads of equal width instead of equal number (these levels attend with "
            f"{sorted(attended)} channels), and its DDPMPipeline passes no labels, so this network "
            "cannot be written for it."
        )
    levels = range(len(network.channel_multipliers))
    attention = [height // 2**i in network.attention_resolutions for i in levels]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": network.out_channels,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "block_out_channels": [network.channels * m for m in network.channel_multipliers],
        "layers_per_block": network.num_blocks,
        "dropout": network.dropout,
        "attention_head_dim": head,
        "norm_num_groups": network.norm_groups,
        **{name: getattr(network, name) for name in SHARED},
        **{name: field.value for name, field in UNET.items()},
    }


def scheduler_config(config: ConfigDict) -> dict[str, Any]:
    """The scheduler_config.json under which diffusers' DDPMScheduler walks the same chain.

    Raises:
        ValueError: for a prediction or variance that it does not have.
    """
    if "path" in config:
        raise ValueError(
            f"config.path = {config.path.name}: diffusers' pipeline for this network walks a "
            "chain, so a model in continuous time cannot be written for it."
        )
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if config.parameterization.name not in predictions:
        raise ValueError(
            f"parameterization = {config.parameterization.name}: diffusers' schedulers take eps, "
            "x_0 or v, so this model cannot be written for it."
        )
    if config.variance.name not in VARIANCE_TYPES.values():
        raise ValueError(
            f"variance = {config.variance.name}: diffusers takes this output for a variance where "
            "it is its logarithm, so this model cannot be written for it."
        )
    betas = lookup(schedules.BETAS, config.schedule, "schedule")()
    start, end = float(betas[0]), float(betas[-1])
    straight = np.allclose(betas, schedules.linear(len(betas), start, end), rtol=1e-12, atol=0)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": len(betas),
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": "linear",
        "trained_betas": None if straight else [float(beta) for beta in betas],
        "variance_type": config.variance.name,
        "prediction_type": predictions[config.parameterization.name],
        "clip_sample": config.sample.threshold.name == "clip",
        **{name: field.value for name, field in SCHEDULER.items()},
    }
