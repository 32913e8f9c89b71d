"""Eight CPU devices, a compilation cache shared by all tests, and shape checks at every call."""

import contextlib
import ctypes
import gc
import os
import pathlib
from collections.abc import Iterator

# Nothing in the tests runs long enough to be worth optimising, and everything has to be compiled.
# The smallest network's training step compiles in 3.0 s of CPU so, and in 5.3 with the first alone.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_llvm_disable_expensive_passes=true",
)

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
bound_forms forward guidance inpainting likelihood losses multistep networks.layers noise_curve
parameterizations probability_flow random reverse samplers thresholds vae walk
"""
install_import_hook([f"diffusion.{name}" for name in CHECKED.split()], "beartype.beartype")


from experiments.data.digits import digits

MOST = 1.25 * 2**30  # bytes that a worker may keep from one file to the next


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """What jax compiled for earlier files is let go of where a process has become large."""
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
