"""torch-fidelity's Inception, without the rest of its package.

The package imports torchvision, which fails beside a PyTorch without CUDA unless it comes from the
same index, and the network does not need it. So the package's own __init__ is not run.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch

FEATURES = ["2048", "logits_unbiased"]
PACKAGE = "torch_fidelity"


def network_class() -> Any:
    """FeatureExtractorInceptionV3."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    module = importlib.import_module(f"{PACKAGE}.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3


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
        theirs = network_class()("inception", FEATURES, feature_extractor_weights_path="")
    theirs.feature_extractor_internal_dtype = dtype
    return theirs.to(dtype)


def extract(theirs: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32[B, 2048] and f32[B, 1008] of u8[B, H, W, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        features, logits = theirs(x)
    return features.numpy(), logits.numpy()
