"""The program in two processes of one run, as on two hosts."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def processes(count: int, *command: str, last: tuple[str, ...] = ()) -> list[subprocess.Popen]:
    """Python with `command` in processes of one run, each with one device; to be read.

    Args:
        last: what follows the address in the arguments.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *command, f"--config.distributed={address},{count},{i}", *last],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def in_processes(count: int, *command: str) -> list[str]:
    """Runs `processes` to their end, and returns what each printed."""
    started = processes(count, *command)
    outputs = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, "\n".join(outputs)
    return outputs
