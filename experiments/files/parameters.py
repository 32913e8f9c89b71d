"""Parameters of a network from named tensors, and back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util

Path = tuple[str, ...]


class Naming(NamedTuple):
    """How one format names and stores a parameter.

    name: (our path, number of levels) -> its name there.
    read: (our path, array as stored) -> array in our axis order, HWIO and IO.
    write: the inverse of `read`.
    canonical: a name as found -> the spelling that `name` gives, where the format has several.
    """

    name: Callable[[Path, int], str]
    read: Callable[[Path, np.ndarray], np.ndarray]
    write: Callable[[Path, np.ndarray], np.ndarray]
    canonical: Callable[[str], str] = lambda name: name


FLOATS = tuple(np.dtype(name) for name in (np.float32, np.float16, ml_dtypes.bfloat16))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def params_from_tensors(
    tensors: Mapping[str, np.ndarray], naming: Naming, shapes: Mapping[str, Any], levels: int
) -> dict[str, Any]:
    """This network's parameters, float32, every one of them out of exactly one tensor.

    Args:
        tensors: as the file names and stores them; float32, float16 or bfloat16.
        naming: one of NAMINGS.
        shapes: the parameters of the network to be filled, or their shapes.
        levels: its number of resolutions.

    Raises:
        ValueError: for a tensor that is missing, left over, given twice, of another shape or dtype,
            or not finite.
    """
    found: dict[str, str] = {}
    for stored in tensors:
        name = naming.canonical(stored)
        if name in found:
            raise ValueError(f"one parameter is given twice, as {found[name]} and as {stored}.")
        found[name] = stored
    flat = traverse_util.flatten_dict(shapes)
    wanted = {path: naming.name(path, levels) for path in flat}
    missing, extra = set(wanted.values()) - set(found), set(found) - set(wanted.values())
    if missing or extra:
        parts = [f"{len(missing)} tensors are missing: {_listed(missing)}."] if missing else []
        parts += [f"{len(extra)} have no place in it: {_listed(extra)}."] if extra else []
        raise ValueError("the file does not fit the network. " + " ".join(parts))
    params = {}
    for path, name in wanted.items():
        value = tensors[found[name]]
        if value.dtype not in FLOATS:
            raise ValueError(
                f"{name} is {value.dtype}; float32, float16 or bfloat16 can be taken over exactly."
            )
        ours = naming.read(path, value)
        if ours.shape != flat[path].shape:
            raise ValueError(
                f"{name} is {value.shape}, and {'/'.join(path)} needs {flat[path].shape} "
                f"(stored as {naming.write(path, np.empty(flat[path].shape)).shape})."
            )
        params[path] = np.ascontiguousarray(ours, dtype=np.float32)
        if not np.isfinite(params[path]).all():
            raise ValueError(f"{name} holds values that are not finite: the weights are damaged.")
    return traverse_util.unflatten_dict(params)


def tensors_from_params(
    params: Mapping[str, Any], naming: Naming, levels: int
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_tensors`."""
    return {
        naming.name(path, levels): np.ascontiguousarray(naming.write(path, np.asarray(value)))
        for path, value in traverse_util.flatten_dict(params).items()
    }
