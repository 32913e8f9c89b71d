"""Pickles read without being run.

A pickle is a program. Readers of the formats that come as pickles derive from `Unpickler`, which
calls only what they name, and nothing else here opens one.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

NEWEST_PROTOCOL = 2


class UnsafeFile(ValueError):
    """A file that asks for more than its format needs, or does not hold what it says."""


def _refuse(unpickler: Any) -> NoReturn:
    raise UnsafeFile(
        f"it uses an instruction newer than pickle's protocol {NEWEST_PROTOCOL}, or an extension."
    )


def _instructions() -> dict[int, Callable[[Any], None]]:
    """What each byte does; the registry of extensions, which goes around `known`, is left out."""
    python: Mapping[int, Any] = pickle._Unpickler.dispatch
    allowed = {
        ord(opcode.code)
        for opcode in pickletools.opcodes
        if opcode.proto <= NEWEST_PROTOCOL and not opcode.name.startswith("EXT")
    }
    return {byte: python[byte] if byte in allowed else _refuse for byte in range(256)}


class Unpickler(pickle._Unpickler):
    """Reads protocols 0 to 2 and calls nothing but the values of `known`.

    The values stand for what the file names and should only note their arguments. This is Python's
    own implementation of the reader in Python: its memo grows with what is stored in it, where the
    one in C allocates whatever index a file names; so does an instruction of protocol 5.

    known: (module, name) -> what stands for it.
    content, remedy: for the message about any other name.
    """

    known: ClassVar[Mapping[tuple[str, str], Any]] = MappingProxyType({})
    content: ClassVar[str]
    remedy: ClassVar[str]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for module.name.

        Raises:
            UnsafeFile: if nothing does.
        """
        if (module, name) not in self.known:
            raise UnsafeFile(
                f"it asks for {module}.{name}, which {self.content} has no use for. It is "
                f"damaged or malicious; {self.remedy}"
            )
        return self.known[module, name]

    def set_state(self, value: Any, state: Any) -> None:
        """Called with the state that the file gives to an object; drops it."""

    def _load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        self.set_state(self.stack[-1], state)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict] = _instructions() | {pickle.BUILD[0]: _load_build}
