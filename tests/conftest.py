"""Eight CPU devices, a compilation cache shared by all tests, and shape checks at every call."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import shlex
import signal
from collections.abc import Iterator
from typing import Any

# Nothing in the tests runs long enough to be worth optimising, and everything has to be compiled.
# The smallest network's training step compiles in 3.0 s of CPU so, and in 5.3 with the first alone.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others end at a flag they know not
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# structs.py stays out: its records also hold what eval_shape and vmap put in place of arrays;
# schedules.py too: its own checks are what a user meets.
CHECKED = """
bound_forms forward guidance inpainting likelihood losses multistep networks.layers paths
parameterizations probability_flow random reverse samplers thresholds vae walk
"""
install_import_hook([f"diffusion.{name}" for name in CHECKED.split()], "beartype.beartype")


from experiments.data.digits import digits
from tests import started

LEFT_OUT = ("slow", "parity")  # of a run that names no file and no marker
_said = pytest.StashKey[str]()


def pytest_configure() -> None:
    started.watch()


@pytest.hookimpl(trylast=True)  # when -k has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is slow, but for files that were named, with or without `::test`."""
    where = config.invocation_params.dir
    named = {(where / argument.partition("::")[0]).resolve() for argument in config.args}
    kept, left, marks = [], [], set()
    for item in items:
        found = {name for name in LEFT_OUT if item.get_closest_marker(name)}
        leave = found and not config.option.markexpr and item.path.resolve() not in named
        (left if leave else kept).append(item)
        marks |= found if leave else set()
    if left:
        items[:] = kept
        config.hook.pytest_deselected(items=left)
        choice = " or ".join(sorted(marks, key=LEFT_OUT.index))
        line = f"left out: {len(left)} tests marked {choice}; "
        line += f"python -m pytest -m {shlex.quote(choice)} runs them"
        config.stash[_said] = getattr(config, "workeroutput", {})["left_out"] = line


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes the line from a worker of pytest-xdist, which alone collects."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[_said] = left_out


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _said in config.stash:
        terminalreporter.write_line(config.stash[_said])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Signals as in the foreground, wherever the tests were started."""
    with started.foreground_signals():
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)


MOST = 1.25 * 2**30  # bytes that a worker may keep from one test to the next


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """What jax compiled for earlier tests is let go of where a process has become large."""
    yield
    with contextlib.suppress(OSError):  # without a /proc it may become larger
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > MOST:
            jax.clear_caches()
            gc.collect()
            with contextlib.suppress(AttributeError):  # of glibc, which keeps it otherwise
                ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(20)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which the digits are prepared once."""
    folder = tmp_path_factory.mktemp("data")
    digits(str(folder)).open("train")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_device() -> Iterator[None]:
    """The program sees the first device only, as on a laptop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        yield


@pytest.fixture
def all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sees all eight: for tests of what is shared between devices."""
    monkeypatch.setattr(jax, "device_count", lambda: len(jax.devices()))
