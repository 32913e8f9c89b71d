"""The weights of the Inception network: found, identified, read, and never downloaded.

They are the file that torch-fidelity publishes. What it is called does not matter, what it holds
does: only the file with the known SHA-256 is Inception, and only its numbers are FID and IS.
"""

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from flax import traverse_util

from experiments.features.inception import CLASSES, Params, param_shapes
from experiments.files.contents import refuse_other
from experiments.files.parameters import Naming, params_from_tensors
from experiments.files.pytorch import read_torch
from experiments.files.tensors import READERS, cache_folder, sha256, write_tensors

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_PREFIX = "6726825d"
PATH_VARIABLE = "DDPM_INCEPTION_WEIGHTS"
LEAVES = MappingProxyType(
    {
        "kernel": "conv.weight",
        "scale": "bn.weight",
        "bias": "bn.bias",
        "mean": "bn.running_mean",
        "variance": "bn.running_var",
    }
)
UNUSED = ".num_batches_tracked"  # counters of PyTorch's training, no weights


def find(path: str | Path | None) -> Path:
    """The file of weights: `path`, else $DDPM_INCEPTION_WEIGHTS, else FILE in the cache folder.

    Raises:
        FileNotFoundError: where there is none, with the command that fetches it. What a path or
            the variable names must exist; nothing else is then tried.
    """
    variable = os.environ.get(PATH_VARIABLE)
    found = Path(path or variable or cache_folder() / FILE).expanduser()
    if found.is_file():
        return found
    by = "" if path else f" ({PATH_VARIABLE} names it)" if variable else ""
    wanted = cache_folder() / FILE
    raise FileNotFoundError(
        f"{found}{by} does not exist. FID and IS need the Inception weights of 2015-12-05 "
        "(95 MB), which are not downloaded silently. Fetch them with\n"
        f"  mkdir -p {shlex.quote(str(wanted.parent))} && "
        f"curl -fL -o {shlex.quote(str(wanted))} {URL}\n"
        f"or fetch them elsewhere, copy them here and set {PATH_VARIABLE}=/path/to/{FILE}."
    )


def _name(path: tuple[str, ...], levels: int) -> str:
    """`Mixed_5b/branch1x1/kernel` is Mixed_5b.branch1x1.conv.weight."""
    *modules, leaf = path
    leaf = leaf.replace("kernel", "weight") if modules == ["fc"] else LEAVES[leaf]
    return ".".join([*modules, leaf])


def _read(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim))


def _write(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim))


NAMING = Naming(_name, _read, _write)


def _shapes() -> Params:
    """Of all that the file holds: the network's parameters and the bias that the logits lack."""
    shapes = param_shapes()
    bias = jax.ShapeDtypeStruct((CLASSES,), np.float32)
    return {**shapes, "fc": {**shapes["fc"], "bias": bias}}


def params_from_state(tensors: Mapping[str, np.ndarray]) -> Params:
    """The network's parameters, float32, from a state dictionary of torch-fidelity.

    `fc.bias` is checked like the others and left out, `*.num_batches_tracked` is ignored.

    Raises:
        ValueError: for a tensor that is missing, left over, of another shape or dtype, or not
            finite, and for a negative variance.
    """
    used = {name: value for name, value in tensors.items() if not name.endswith(UNUSED)}
    for name, value in used.items():
        if name.endswith(LEAVES["variance"]) and np.any(value < 0):
            raise ValueError(f"{name} holds negative variances: the weights are damaged.")
    params = params_from_tensors(used, NAMING, _shapes(), levels=0)
    del params["fc"]["bias"]
    return params


def _read_converted(path: Path) -> Params:
    try:
        return params_from_state(READERS[".safetensors"](path))
    except ValueError as error:
        raise ValueError(
            f"{path}, which this program made from {FILE}, is damaged; delete it. ({error})"
        ) from error


def load_inception(path: str | Path | None = None) -> tuple[Params, str]:
    """The network's parameters and the SHA-256 (hexadecimal) of the file that they come from.

    Args:
        path: torch-fidelity's file; None looks where `find` says.

    Nothing in the file is run. Its tensors are kept as safetensors in the cache folder, by the
    SHA-256, and read from there the next time.

    Raises:
        FileNotFoundError: where there is no file, with the command that fetches it.
        ValueError: for a file that is not Inception, by its SHA-256, and a damaged one.
    """
    source = find(path)
    digest = sha256(source)
    if not digest.startswith(SHA256_PREFIX):
        refuse_other(source, "file of PyTorch's", "zip", "pickle")
        raise ValueError(
            f"{source} is not the Inception of 2015-12-05: its SHA-256 is {digest} and must begin "
            f"with {SHA256_PREFIX}. It is another file, or was not downloaded whole; take {URL}"
        )
    converted = cache_folder() / f"inception-{digest}.safetensors"
    if converted.is_file():
        return _read_converted(converted), digest
    tensors = read_torch(source)
    params = params_from_state(tensors)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_tensors(converted, tensors)
    return params, digest


def state_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors that the file must hold, by name, as PyTorch stores them."""
    flat = traverse_util.flatten_dict(_shapes())
    return {_name(path, 0): _write(path, np.empty(leaf.shape)).shape for path, leaf in flat.items()}
