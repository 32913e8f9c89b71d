"""What has to be said to XLA before it starts."""

import importlib.util
import mmap
import os
import pathlib
from collections.abc import MutableMapping

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VALUE = "LIBRARY_FUSION_TYPE_DOT"


def _knows(library: pathlib.Path, words: tuple[str, ...]) -> bool:
    """Whether the file contains all of these words; a third of a second for one it has not."""
    if library.stat().st_size == 0:
        return False
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return all(content.find(word.encode()) >= 0 for word in words)


def _jaxlib() -> pathlib.Path | None:
    """The folder of jaxlib, found without importing it."""
    spec = importlib.util.find_spec("jaxlib")
    return None if spec is None or spec.origin is None else pathlib.Path(spec.origin).parent


def set_cpu_flags(
    environ: MutableMapping[str, str] | None = None, folder: pathlib.Path | None = None
) -> bool:
    """Adds to XLA_FLAGS the choice that makes convolutions fast on CPU.

    XLA's own code for the gradient of a convolution is some ten times slower there than matrix
    products are; with this flag it uses a library. Results change by float rounding only, and other
    devices ignore it. XLA ends the process at a flag or value that it does not know, so the flag is
    added only where jaxlib's shared library contains both words, and never over the user's own.

    Call it before anything asks jax for a device, which reads XLA_FLAGS once; later calls do
    nothing, silently, as jax offers no public way to know.

    Args:
        environ: where XLA_FLAGS is read and written; os.environ by default.
        folder: where jaxlib's shared libraries lie; the installed jaxlib by default.

    Returns:
        Whether the flag was added.
    """
    environ = os.environ if environ is None else environ
    folder = _jaxlib() if folder is None else folder
    present = environ.get("XLA_FLAGS", "")
    if FLAG in present or folder is None:
        return False
    words = (FLAG.removeprefix("--"), VALUE)
    if not any(_knows(library, words) for library in sorted(folder.glob("*.so"))):
        return False
    environ["XLA_FLAGS"] = f"{present} {FLAG}={VALUE}".strip()
    return True
