"""The program in two processes of one run, as on two hosts."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

from tests.started import PIPE, STDOUT, Popen, started


@contextlib.contextmanager
def processes(count: int, *command: str, last: tuple[str, ...] = ()) -> Iterator[list[Popen]]:
    """Python with `command` in processes of one run, each with one device; to be read.

    Args:
        last: what follows the address in the arguments.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    places = [f"--config.distributed={address},{count},{i}" for i in range(count)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(started(each, env=environ, stdout=PIPE, stderr=STDOUT))
            for each in ([sys.executable, *command, place, *last] for place in places)
        ]


def in_processes(count: int, *command: str) -> list[str]:
    """Runs `processes` to their end, and returns what each printed."""
    with processes(count, *command) as running:
        outputs = [process.communicate(timeout=400)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count, "\n".join(outputs)
    return outputs
