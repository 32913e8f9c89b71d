"""The kind of a file by its first bytes, for errors about what lies in the place of another."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

LOOKED_AT = 512  # bytes
SHOWN = 60  # of a text


class Kind(NamedTuple):
    """What files of a kind are called, what to do with one, and how their first bytes look."""

    called: str
    remedy: str
    begins: Callable[[bytes], bool]


def _with(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(beginnings)


def _is_markup(head: bytes) -> bool:
    return (
        head.lstrip(b"\xef\xbb\xbf\r\n\t ").lower().startswith((b"<!doctype", b"<html", b"<?xml"))
    )


def _is_safetensors(head: bytes) -> bool:
    """Whether there is a length, and then the JSON that is so long."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def _is_text(head: bytes) -> bool:
    try:
        return head.decode().replace("\r", "").replace("\n", "").replace("\t", "").isprintable()
    except UnicodeDecodeError:
        return False


UNPACK = "Unpack it first."
KINDS = MappingProxyType(
    {
        "empty": Kind("empty", "It was not copied or downloaded whole.", lambda head: not head),
        "lfs": Kind(
            "a pointer of Git LFS",
            "`git lfs pull` in its repository puts the file itself there.",
            _with(b"version https://git-lfs.github.com/"),
        ),
        "html": Kind(
            "a page of HTML or XML",
            "A server sent that in place of the file: download it from the file's own address (on "
            "a hub the one with /resolve/, not /blob/).",
            _is_markup,
        ),
        "zip": Kind(
            "a zip archive",
            "Name it .pt if it is a file of PyTorch's, .npz if it holds arrays of NumPy.",
            _with(b"PK\x03\x04"),
        ),
        "pickle": Kind(
            "a pickle",
            "Name it .pt if it is a file of PyTorch's.",
            _with(*(b"\x80" + bytes([protocol]) for protocol in range(2, 6))),
        ),
        "safetensors": Kind(
            "a safetensors file", "Let its name end in .safetensors.", _is_safetensors
        ),
        "npy": Kind("a single array of NumPy", "numpy.savez keeps several.", _with(b"\x93NUMPY")),
        "gzip": Kind("gzipped", UNPACK, _with(b"\x1f\x8b")),
        "tar": Kind("a tar archive", UNPACK, lambda head: head[257:262] == b"ustar"),
        "packed": Kind(
            "an archive", UNPACK, _with(b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\x00")
        ),
        "hdf5": Kind("an HDF5 file", "Only its own program reads that.", _with(b"\x89HDF\r\n")),
        "picture": Kind("a picture", "", _with(b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
        "text": Kind("text", "", _is_text),
    }
)


def kind_of(path: Path) -> str:
    """A key of KINDS, or "" for what none of them begins with."""
    with path.open("rb") as stream:
        head = stream.read(LOOKED_AT)
    return next((name for name, kind in KINDS.items() if kind.begins(head)), "")


def unlike(path: Path, wanted: str, *kinds: str) -> str:
    """Says "is ..., and no ..." of a file that plainly is something else, and what to do.

    Args:
        wanted: what the file should be.
        kinds: keys of KINDS that may be such a file.

    Returns:
        "" for one of these kinds, and where the kind cannot be told.
    """
    found = kind_of(path)
    if not found or found in kinds:
        return ""
    remedy = KINDS[found].remedy
    if found == "text":
        with path.open("rb") as stream:
            first = stream.read(SHOWN).decode(errors="replace").strip().split("\n")[0]
        remedy = f"It begins with {first!r}."
    return f"is {KINDS[found].called}, and no {wanted}. {remedy}".rstrip()


def refuse_other(path: Path, wanted: str, *kinds: str) -> None:
    """Raises a ValueError that names the file where `unlike` has something to say of it."""
    if said := unlike(path, wanted, *kinds):
        raise ValueError(f"{path} {said}")
