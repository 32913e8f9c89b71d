"""The device mesh, how arrays lie on it, and how functions are compiled for it."""

import contextlib
import functools
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Random numbers do not depend on how arrays lie on devices; set for all who import this package.
jax.config.update("jax_threefry_partitionable", True)

PRECISIONS = ("default", "high", "highest")
SHARED = 2**12  # numbers: an array with fewer is whole on every device
REPORTED = "highest"  # precision of the products behind likelihoods and distances
# jaxlib 0.10 fuses matrix products with what follows them for its CPU library and gets rows beyond
# the 32,768th wrong (jax issue 39103), with its default setting too. Products on their own are
# right, and as fast; the setting also leaves convolutions to XLA, whose gradients are the faster.
CPU_OPTIONS = MappingProxyType(
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
)
Sharding = jax.sharding.Sharding
Placed = Sharding | Callable[[tuple[int, ...]], Sharding]  # of every array, or by its shape
CACHED_BYTES = 2 * 2**30  # of compiled functions


@functools.cache
def compiler_options() -> dict[str, str]:
    """What the compiler is told: CPU_OPTIONS on a CPU whose jaxlib knows them, else nothing."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=dict(CPU_OPTIONS)).lower().compile()
    except jax.errors.JaxRuntimeError:  # no such option, and with it no such fault
        return {}
    return dict(CPU_OPTIONS)


def jit(function: Callable[..., Any], *, precision: str, **options: Any) -> Any:
    """`jax.jit` with `compiler_options`: how every function of a run is compiled.

    Args:
        function: to be compiled, at the top level only: jit within jit takes no such options.
        precision: of the float32 products inside, one of PRECISIONS. On a CPU they are all the
            same; elsewhere "default" rounds the factors (to TF32 on a GPU, to bfloat16 on a TPU)
            and "highest" keeps float32.
        **options: of `jax.jit`.
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return jax.jit(traced, compiler_options=compiler_options(), **options)


class OutOfMemory(RuntimeError):
    """A function that needs more memory than its devices have."""


def free_bytes() -> int | None:
    """Bytes that can still be allocated on a device of this process; None where nobody says."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    found = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        line = re.search(r"MemAvailable: +([0-9]+) kB", Path("/proc/meminfo").read_text())
        found.append(int(line[1]) * 1024 if line else 2**62)
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" is none
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(found) // jax.local_device_count() if found else None


class Executables:
    """A function of `jit`, compiled ahead for each shape of its arguments, with a look at memory.

    Calling it raises OutOfMemory, in every process alike, where the compiler says that a device
    needs more than it has; nothing has run then. So it does where the device finds out by itself.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        if getattr(jax.config, "jax_disable_jit", False):  # which not every jax types
            return self._function(*arguments)
        shapes = tuple((np.shape(x), x.dtype) for x in jax.tree.leaves(arguments))
        if shapes not in self._compiled:
            compiled = self._function.lower(*arguments).compile()
            _check_memory(compiled)
            self._compiled[shapes] = compiled
        try:
            return self._compiled[shapes](*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory("a batch needs more memory than is free") from error


def needed_bytes(compiled: Any) -> int:
    """Bytes of temporaries and results on a device, which are not there before a call."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(results, 0))


def _check_memory(compiled: Any) -> None:
    """Raises OutOfMemory where a call would not fit."""
    needed, free = needed_bytes(compiled), free_bytes()
    if not all_agree(free is None or needed <= free):
        raise OutOfMemory(
            f"a batch needs {needed / 2**20:,.0f} MiB beside what is there, of "
            f"{(free or 0) / 2**20:,.0f} MiB that are free"
        )


def split(array: jax.Array, first: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """An array cut over the devices as two such arrays, `first` rows and the rest."""
    parts: tuple[jax.Array, jax.Array] = jax.jit(
        lambda x: (x[:first], x[first:]), out_shardings=sharded(mesh)
    )(array)
    return parts


def joined(parts: Sequence[Any], axes: tuple[int, ...], mesh: Mesh) -> Any:
    """Tuples of replicated arrays as one: array k of all of them along axes[k]."""

    def concatenate(parts: Sequence[Any]) -> Any:
        return tuple(
            jnp.concatenate(arrays, axis)
            for arrays, axis in zip(zip(*parts, strict=True), axes, strict=True)
        )

    return jax.jit(concatenate, out_shardings=replicated(mesh))(parts)


def compile_seconds(lowered: Any) -> float:
    """About how long a lowered function takes to compile: 0.8 s for 1,000 lines of its program.

    Measured on 2 cores of an AMD EPYC for training steps of 6,000 to 37,000 lines, 0.6 to 1.0 s;
    compilers of other devices differ.
    """
    return 8e-4 * lowered.as_text().count("\n")


def keep_compiled(folder: Path) -> None:
    """Compiled functions are kept in a folder and found there by later programs of this machine.

    The oldest are removed beyond CACHED_BYTES. Where jax was told of a folder of its own
    ($JAX_COMPILATION_CACHE_DIR), nothing changes. Call it before anything is compiled.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    if jax.default_backend() == "cpu":  # code of one processor may be illegal on another
        with contextlib.suppress(OSError):
            about = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
            flags = [line for line in about.splitlines() if line.startswith(("flags", "Features"))]
            folder = folder / f"cpu-{zlib.crc32(''.join(flags).encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def initialize_distributed(setting: str) -> None:
    """Joins the processes of a run; call it before anything touches a device.

    Args:
        setting: "off"; "auto", from what the cluster (TPU pod, Slurm) says; or
            "HOST:PORT,NUM_PROCESSES,PROCESS_ID".

    Raises:
        ValueError: for anything else.
    """
    if setting == "off":
        return
    if setting == "auto":
        jax.distributed.initialize()
        return
    parts = setting.split(",")
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        raise ValueError(
            f"config.distributed = {setting!r} is not understood. Use 'off', 'auto' or "
            "'HOST:PORT,NUM_PROCESSES,PROCESS_ID'."
        )
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))


def check_backend() -> None:
    """Refuses a platform that this installation has no devices of.

    Raises:
        ValueError: saying what there is, and what to install.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where nothing of it is installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = str(error).partition("\n")[0] or "this installation knows no such platform."
        raise ValueError(
            f"no device of JAX_PLATFORMS={asked} can be used: {why} Install "
            "the extra for it (pip install -e '.[cuda]' or '.[tpu]'), or leave the variable out."
        ) from error


def make_mesh(devices: Sequence[jax.Device] | None = None, data: int = 0, fsdp: int = 1) -> Mesh:
    """The axes "data" and "fsdp" over the given devices; by default all devices of all processes.

    A batch is cut over both. Devices that differ in "fsdp" alone share one copy of the training
    state (`over_fsdp`), and are neighbours, of one process where that has enough.

    Args:
        data, fsdp: devices along each axis; 0, for one of the two, is as many as there are left.

    Raises:
        ValueError: if there are not as many devices as that.
    """
    count = jax.device_count() if devices is None else len(devices)
    along = {"data": data, "fsdp": fsdp}
    for name, other in (("data", "fsdp"), ("fsdp", "data")):
        if along[name] == 0 and along[other] > 0:
            along[name] = count // along[other]
    if min(along.values()) < 1 or along["data"] * along["fsdp"] != count:
        raise ValueError(
            f"config.mesh = dict(data={data}, fsdp={fsdp}) does not fit {count} device(s): the "
            "product of the two is the number of devices, and one of them may be 0, which is what "
            f"is left. config.mesh.fsdp is a divisor of {count}; 1 shares nothing."
        )
    return jax.make_mesh(
        tuple(along.values()), tuple(along), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def over_fsdp(mesh: Mesh) -> Callable[[tuple[int, ...]], NamedSharding]:
    """Shape of an array of the training state -> how it lies on the devices.

    One of at least SHARED numbers is cut along the longest of the axes that the devices of "fsdp"
    can share equally, the last of several; any other is whole on every device. (ZeRO, stage 3:
    Rajbhandari et al. 2020, arXiv:1910.02054.)
    """
    count = mesh.shape["fsdp"]

    def place(shape: tuple[int, ...]) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
        if count == 1 or not fitting or math.prod(shape) < SHARED:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return place


def constrained(tree: Any, place: Callable[[tuple[int, ...]], NamedSharding]) -> Any:
    """Inside a compiled function: the arrays, laid out as `place` says for each shape."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, place(x.shape)), tree)


def abstract_like(make: Callable[[], Any], sharding: Placed) -> Any:
    """Shapes and dtypes of what `make` returns, without computing it, laid out as `sharding`."""
    place = sharding if callable(sharding) else lambda shape: sharding
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x.shape)),
        jax.eval_shape(make),
    )


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that may be cut over devices, on every device; those that already are stay."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    if all(x.sharding.is_fully_replicated for x in arrays):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def round_up(count: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `count`."""
    return -(-count // mesh.size) * mesh.size


def check_divisible(batch_size: int, where: str, mesh: Mesh) -> None:
    """Refuses a batch that the devices cannot share equally.

    Raises:
        ValueError: naming the config field.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"config.{where} = {batch_size} cannot be shared by {mesh.size} device(s): choose a "
            f"multiple of {mesh.size}."
        )


def put(tree: Any, sharding: NamedSharding) -> Any:
    """This process's numpy arrays as global arrays that lie as `sharding` says."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def put_global(tree: Any, sharding: NamedSharding) -> Any:
    """Numpy arrays that are the same in every process as global arrays under `sharding`."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
    )


def fetch(tree: Any) -> Any:
    """Replicated global arrays as numpy arrays, in every process."""
    return jax.tree.map(np.asarray, tree)


def all_agree(flag: bool) -> bool:
    """Whether the flag is set in every process, so that all of them take the same way."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def from_main(tree: Any) -> Any:
    """The main process's numpy arrays, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def is_main_process() -> bool:
    """True in the one process that writes files."""
    return jax.process_index() == 0
