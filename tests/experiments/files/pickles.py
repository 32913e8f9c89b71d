"""Pickles written by hand: what they ask for need not exist, and nothing of it is called here."""

import io
import pickle
import struct
from typing import Any

import numpy as np


class Global:
    """Pickled as a reference to MODULE.NAME, which need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a Global, and where there is a state, as its setting on the result."""

    def __init__(self, function: Global, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state


class Reference(tuple):
    """Pickled as a persistent reference, as PyTorch's storages are."""


class Pickler(pickle._Pickler):  # the Python one, whose opcodes can be written by hand
    """Writes Globals, Calls and References, and bytes and arrays as Python 2 and its NumPy did."""

    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, Reference) else None

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        elif isinstance(value, bytes) and len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        elif isinstance(value, bytes):
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        elif isinstance(value, np.ndarray):
            self.save(array(value))
        else:
            super().save(value, save_persistent_id)


def array(value: np.ndarray, *, shape: tuple[int, ...] | None = None) -> Call:
    """An array; `shape` is what is said of it."""
    columns_first = value.flags.fnc
    code = value.dtype.str[1:].encode()
    dtype = Call(Global("numpy", "dtype"), code, 0, 1, state=(3, b"|", None, None, None, -1, -1, 0))
    content = value.tobytes("F" if columns_first else "C")
    return Call(
        Global("numpy.core.multiarray", "_reconstruct"),
        *(Global("numpy", "ndarray"), (0,), b"b"),
        state=(1, shape or value.shape, dtype, columns_first, content),
    )


def dumps(content: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()
