"""diffusers' UNet2DModel and its parameters, in this network's names and the other way round.

The two networks have the same parameters under different names and axis orders, so one rule per
module name is the whole mapping.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from diffusion.unet import UNet

NAMES = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "temb/dense0": "time_embedding.linear_1",
    "temb/dense1": "time_embedding.linear_2",
    "mid/block_1": "mid_block.resnets.0",
    "mid/attn_1": "mid_block.attentions.0",
    "mid/block_2": "mid_block.resnets.1",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "conv": "conv",
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
}
NUMBERED = {"block": "resnets", "attn": "attentions", "down": "down_blocks", "up": "up_blocks"}


def source_name(path: tuple[str, ...], levels: int) -> str:
    """The name in diffusers of our parameter at `path`; theirs numbers the way up from below."""
    parts = list(path)
    if "/".join(parts[:2]) in NAMES:
        parts[:2] = ["/".join(parts[:2])]
    names = []
    for part in parts:
        if part in NAMES:
            names.append(NAMES[part])
        else:
            kind, number = part.split("_")
            index = levels - 1 - int(number) if kind == "up" else int(number)
            names.append(f"{NUMBERED[kind]}.{index}")
    return ".".join(names)


def from_source(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """One tensor in our axis order: HWIO for convolutions, IO for linear maps."""
    if path[-2] == "nin_shortcut" and value.ndim == 4:
        value = value[:, :, 0, 0]
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])


def to_source(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """The inverse of `from_source`."""
    value = value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim])
    if path[-2:] == ("nin_shortcut", "kernel"):
        value = value[:, :, None, None]
    return value


def params_from_state(
    state: Mapping[str, np.ndarray], template: Mapping[str, Any], levels: int
) -> dict[str, Any]:
    """Our parameters with diffusers' numbers.

    Args:
        state: a UNet2DModel's state_dict as NumPy arrays.
        template: our parameters, or their shapes.
        levels: number of resolutions.

    Raises:
        ValueError: for a tensor that is missing, left over or of another shape.
    """
    params, unused = {}, set(state)
    for path, leaf in traverse_util.flatten_dict(template).items():
        name = source_name(path, levels)
        if name not in unused:
            raise ValueError(f"{'/'.join(path)} needs {name}, which is missing or used twice.")
        unused.remove(name)
        params[path] = from_source(path, state[name])
        if params[path].shape != leaf.shape:
            raise ValueError(f"{name} gives {params[path].shape}, {path} needs {leaf.shape}.")
    if unused:
        raise ValueError(f"these tensors have no place in our network: {sorted(unused)}.")
    return traverse_util.unflatten_dict(params)


def state_from_params(params: Mapping[str, Any], levels: int) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state`."""
    return {
        source_name(path, levels): to_source(path, np.asarray(value))
        for path, value in traverse_util.flatten_dict(params).items()
    }


def build(model: UNet, image_shape: tuple[int, int, int]) -> Any:
    """The UNet2DModel of the same topology, configured as the published DDPM models are."""
    from diffusers import UNet2DModel

    levels = len(model.channel_multipliers)
    attention = [image_shape[0] // 2**i in model.attention_resolutions for i in range(levels)]
    return UNet2DModel(
        sample_size=image_shape[:2],
        in_channels=image_shape[2],
        out_channels=model.out_channels,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        block_out_channels=[model.channels * m for m in model.channel_multipliers],
        layers_per_block=model.num_blocks,
        downsample_padding=0,
        dropout=model.dropout,
        attention_head_dim=None,
        norm_num_groups=model.norm_groups,
        norm_eps=1e-6,
    ).eval()
