"""torch-fidelity, whether or not torchvision loads.

The package imports torchvision, which fails beside a PyTorch without CUDA unless it comes from the
same index. Of it, the networks and metrics used here need two functions, which stand in for it.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch

FEATURES = ["2048", "logits_unbiased"]


def pil_to_tensor(image: Any) -> torch.Tensor:
    """u8[3, H, W] of a picture in RGB."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def compose(functions: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One function after the other."""
    return lambda value: functools.reduce(lambda x, f: f(x), functions, value)


def torchvision() -> dict[str, types.ModuleType]:
    """The modules of torchvision that torch-fidelity imports, with what is used of them here."""
    dataset = torch.utils.data.Dataset
    contents: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.datasets": dict.fromkeys(("CIFAR10", "CIFAR100", "STL10"), dataset),
        "torchvision.transforms": {"Compose": compose},
        "torchvision.transforms.functional": {"pil_to_tensor": pil_to_tensor},
    }
    modules = {name: types.ModuleType(name) for name in contents}
    for name, attributes in contents.items():
        vars(modules[name]).update(attributes)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    return modules


@functools.cache
def package() -> Any:
    """torch_fidelity, which keeps the stand-in; no other library gets to see it."""
    missing = {name: module for name, module in torchvision().items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        for name in missing:
            del sys.modules[name]


def network(state: Mapping[str, np.ndarray], dtype: torch.dtype) -> Any:
    """The network with given weights in place of those that it would download.

    Args:
        state: what `random_state` of the fixture makes.
        dtype: of everything inside; its own argument for that has no effect in version 0.4.0.
    """
    counter = torch.zeros((), dtype=torch.int64)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    norms = [name.removesuffix("weight") for name in state if name.endswith("bn.weight")]
    tensors |= {f"{name}num_batches_tracked": counter for name in norms}
    with mock.patch.object(torch, "load", return_value=tensors):
        theirs = package().FeatureExtractorInceptionV3(
            "inception", FEATURES, feature_extractor_weights_path=""
        )
    theirs.feature_extractor_internal_dtype = dtype
    return theirs.to(dtype)


def extract(theirs: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32[B, 2048] and f32[B, 1008] of u8[B, H, W, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        features, logits = theirs(x)
    return features.numpy(), logits.numpy()
