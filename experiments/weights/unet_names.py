"""The names that others give to this network's parameters, and the order of their axes.

All of them hold the same network, so one rule per module name is the whole mapping. Ours are the
original's names: `down_1/block_0/conv1/kernel`.
"""

import re
from types import MappingProxyType
from typing import cast

import numpy as np

from diffusion.networks.network import Network
from diffusion.networks.unet import UNet
from experiments.files.parameters import Naming, Path

TORCH_LEAVES = MappingProxyType({"kernel": "weight", "scale": "weight", "bias": "bias"})
TENSORFLOW_LEAVES = MappingProxyType({"kernel": "W", "scale": "gamma"})
DIFFUSERS_MODULES = MappingProxyType(
    {
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
    }
)
DIFFUSERS_NUMBERED = MappingProxyType(
    {"block": "resnets", "attn": "attentions", "down": "down_blocks", "up": "up_blocks"}
)
# What diffusers called the attention's maps until its version 0.17; published files still do.
DIFFUSERS_OLD = MappingProxyType(
    {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
)


def _diffusers_name(path: Path, levels: int) -> str:
    """diffusers numbers the way up from the lowest resolution, and this network from the top."""
    *modules, leaf = path
    if "/".join(modules[:2]) in DIFFUSERS_MODULES:
        modules[:2] = ["/".join(modules[:2])]
    names = []
    for module in modules:
        if module in DIFFUSERS_MODULES:
            names.append(DIFFUSERS_MODULES[module])
        else:
            kind, number = module.split("_")
            index = levels - 1 - int(number) if kind == "up" else int(number)
            names.append(f"{DIFFUSERS_NUMBERED[kind]}.{index}")
    return ".".join([*names, TORCH_LEAVES[leaf]])


def _diffusers_canonical(name: str) -> str:
    old = "|".join(DIFFUSERS_OLD)
    return re.sub(
        rf"(?<=\.)({old})(?=\.(weight|bias)$)", lambda match: DIFFUSERS_OLD[match[1]], name
    )


def _pytorch_name(path: Path, levels: int) -> str:
    """`down_1/block_0/conv1/kernel` is down.1.block.0.conv1.weight; mid's numbers stay."""
    *modules, leaf = path
    if modules[0] != "mid":
        modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    modules = [re.sub(r"^dense(\d)$", r"dense.\1", module) for module in modules]
    return ".".join([*modules, TORCH_LEAVES[leaf]])


def _tensorflow_name(path: Path, levels: int) -> str:
    *modules, leaf = path
    if leaf == "bias":
        leaf = "beta" if modules[-1].startswith("norm") else "b"
    return "/".join(["model", *modules, TENSORFLOW_LEAVES.get(leaf, leaf)])


def _from_torch(path: Path, value: np.ndarray) -> np.ndarray:
    if path[-2] in ("nin_shortcut", "q", "k", "v", "proj_out") and value.ndim == 4:
        if value.shape[2:] != (1, 1):
            return value  # whose shape is then refused
        value = value[:, :, 0, 0]
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
    return value if axes is None else value.transpose(axes)


def _to_torch(path: Path, value: np.ndarray) -> np.ndarray:
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return value if axes is None else value.transpose(axes)


def _to_diffusers(path: Path, value: np.ndarray) -> np.ndarray:
    value = _to_torch(path, value)
    return value[:, :, None, None] if path[-2:] == ("nin_shortcut", "kernel") else value


def _to_pytorch(path: Path, value: np.ndarray) -> np.ndarray:
    maps = ("nin_shortcut", "q", "k", "v", "proj_out")
    value = _to_torch(path, value)
    return value[:, :, None, None] if path[-2] in maps and value.ndim == 2 else value


def _same(path: Path, value: np.ndarray) -> np.ndarray:
    return value


NAMINGS = MappingProxyType(
    {
        "diffusers": Naming(_diffusers_name, _from_torch, _to_diffusers, _diffusers_canonical),
        "pytorch": Naming(_pytorch_name, _from_torch, _to_pytorch),
        "tensorflow": Naming(_tensorflow_name, _same, _same),
    }
)


def check_unet(network: type, model: str) -> None:
    """Refuses a network whose parameters have no names elsewhere.

    Args:
        network: its class.
        model: the network's name in the config, for the error.

    Raises:
        ValueError: naming it and what there is.
    """
    if not issubclass(network, UNet):
        raise ValueError(
            f"config.model.name = {model!r}: weights come from and go to other programs for the "
            f"U-Net only (config.model.name = 'unet'), and this network is a {network.__name__}."
        )


def as_unet(network: Network, model: str) -> UNet:
    """`network`, which `check_unet` finds to be one."""
    check_unet(type(network), model)
    return cast(UNet, network)
