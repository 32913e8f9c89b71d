"""A reader of PyTorch's files (.bin, .pt, .pth, .ckpt) that runs nothing that a file asks for.

Such a file is a pickle, and a pickle is a program. This reader knows the few constructors that a
dictionary of tensors needs and refuses every other; it needs no PyTorch, and every tensor must lie
inside the bytes that the file really has. Both layouts are read: the zip of PyTorch >= 1.6 and
the older sequence of pickles.
"""

import collections
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from experiments.files.contents import unlike
from experiments.files.pickles import Unpickler, UnsafeFile

STORAGES = MappingProxyType(
    {
        "DoubleStorage": np.dtype(np.float64),
        "FloatStorage": np.dtype(np.float32),
        "HalfStorage": np.dtype(np.float16),
        "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
        "LongStorage": np.dtype(np.int64),
        "IntStorage": np.dtype(np.int32),
        "ShortStorage": np.dtype(np.int16),
        "CharStorage": np.dtype(np.int8),
        "ByteStorage": np.dtype(np.uint8),
        "BoolStorage": np.dtype(np.bool_),
    }
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MOST_SHARING = 4  # tensors may share numbers, but not so that a small file fills the memory


class _StorageType(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> _Tensor:
    if hooks or metadata:
        raise UnsafeFile("a tensor has hooks, or is stored negated or conjugated.")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Any:
    if hooks:
        raise UnsafeFile("a parameter has hooks.")
    return tensor


class _Unpickler(Unpickler):
    """Knows OrderedDict, storages and tensors; a tensor stays a description until it is checked.

    The state that a file sets on an object is dropped: PyTorch's holds versions only.
    """

    known = MappingProxyType(
        {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        | {("torch", name): _StorageType(name) for name in STORAGES}
    )
    content = "a file of weights"
    remedy = "take the weights from a safetensors file instead."

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(name), str(key), _, int(size), *view) if not any(view):
                return _Storage(key, STORAGES[name], size)
        raise UnsafeFile("it refers to something that is no storage of numbers.")


def _array(tensor: _Tensor, storage: np.ndarray, name: str) -> np.ndarray:
    """The tensor as an array of its own, every element of which was checked to be in the file."""
    _, offset, shape, strides = tensor
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise UnsafeFile(f"{name} has the impossible layout {shape}, {strides}, {offset}.")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and (last >= storage.size or count > storage.size):
        raise UnsafeFile(
            f"{name} of shape {shape} with strides {strides} reaches beyond the {storage.size} "
            "numbers that are stored for it."
        )
    if not count:
        return np.empty(shape, storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * storage.itemsize for stride in strides], writeable=False
    )
    return view.copy()


def _tensors(
    content: Any, read: Callable[[_Storage], np.ndarray], file_bytes: int
) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping) or not content:
        raise UnsafeFile(f"it holds a {type(content).__name__} and not a dictionary of tensors.")
    storages: dict[str, np.ndarray] = {}
    tensors, total = {}, 0
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise UnsafeFile(
                f"its entry {name!r} is a {type(value).__name__} and not a tensor. Save the state "
                "dictionary of the network alone."
            )
        storage = value.storage
        if not isinstance(storage, _Storage):
            raise UnsafeFile(f"{name} has no storage.")
        if storage.key not in storages:
            storages[storage.key] = read(storage)
        if storages[storage.key].dtype != storage.dtype:
            raise UnsafeFile(f"{name} reads numbers of one kind as another.")
        tensors[name] = _array(value, storages[storage.key], name)
        total += tensors[name].nbytes
        if total > MOST_SHARING * file_bytes:
            raise UnsafeFile(f"its tensors hold more than {MOST_SHARING} times what the file does.")
    return tensors


def _numbers(content: bytes, storage: _Storage) -> np.ndarray:
    if len(content) != storage.size * storage.dtype.itemsize:
        raise UnsafeFile(
            f"storage {storage.key} should have {storage.size} numbers, its bytes are "
            f"{len(content)}."
        )
    return np.frombuffer(content, storage.dtype)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise UnsafeFile("its archive names one entry twice.")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UnsafeFile("its archive is compressed, which PyTorch's never are.")
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UnsafeFile("it is a zip file, but not one of PyTorch's.")
        root = pickles[0].removesuffix("data.pkl")
        order = root + "byteorder"
        if order in names and archive.read(order) != b"little":
            raise UnsafeFile("its numbers are big-endian.")

        def read(storage: _Storage) -> np.ndarray:
            if f"{root}data/{storage.key}" not in names:
                raise UnsafeFile(f"storage {storage.key} is not in the archive.")
            return _numbers(archive.read(f"{root}data/{storage.key}"), storage)

        with archive.open(pickles[0]) as stream:
            return _tensors(_Unpickler(stream).load(), read, path.stat().st_size)


def _read_legacy(stream: BinaryIO, file_bytes: int) -> dict[str, np.ndarray]:
    if _Unpickler(stream).load() != LEGACY_MAGIC or _Unpickler(stream).load() != LEGACY_PROTOCOL:
        raise UnsafeFile("it is no file of PyTorch's.")
    system = _Unpickler(stream).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsafeFile("its numbers are big-endian.")
    content = _Unpickler(stream).load()
    keys = _Unpickler(stream).load()
    declared = {
        value.storage.key: value.storage
        for value in (content.values() if isinstance(content, Mapping) else ())
        if isinstance(value, _Tensor) and isinstance(value.storage, _Storage)
    }
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
        raise UnsafeFile("its list of storages is damaged.")
    storages = {}
    for key in keys:
        if key not in declared:
            raise UnsafeFile(f"storage {key} belongs to no tensor.")
        (size,) = struct.unpack("<q", stream.read(8))
        if size != declared[key].size:
            raise UnsafeFile(f"storage {key} has {size} numbers, not {declared[key].size}.")
        storages[key] = _numbers(stream.read(size * declared[key].dtype.itemsize), declared[key])

    def read(storage: _Storage) -> np.ndarray:
        if storage.key not in storages:
            raise UnsafeFile(f"storage {storage.key} is not in the file.")
        return storages[storage.key]

    return _tensors(content, read, file_bytes)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file that holds one flat dictionary of them.

    Raises:
        UnsafeFile: for a file that is damaged, truncated, asks for anything but tensors, or holds
            something else.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as stream:
            return _read_legacy(stream, path.stat().st_size)
    except OSError:
        raise
    except Exception as error:  # whatever a pickle can raise that is no pickle of PyTorch's
        if other := unlike(path, "file of PyTorch's", "zip", "pickle"):
            raise UnsafeFile(f"{path} was not read: it {other}") from None
        if isinstance(error, UnsafeFile):
            raise UnsafeFile(f"{path} was not read: {error}") from None
        raise UnsafeFile(
            f"{path} was not read: it is truncated, damaged or no file of PyTorch's "
            f"({type(error).__name__}: {error})."
        ) from error
