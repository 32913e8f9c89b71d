"""Whether the other processes of a run are still there.

A collective operation waits for all processes, and forever for one that is dead or frozen. So every
process tells process 0 each second that it lives, over a TCP connection of its own, and is told so;
a connection that is closed, or silent for PATIENCE seconds, ends all the others at once.
"""

import contextlib
import multiprocessing
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np

from experiments import console, devices

BEAT = 1.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds of silence after which a process counts as frozen
VERDICT = 3.0  # seconds in which it is known whether an error came of a process that is gone
ALIVE, LEAVING = b".", b"!"
DEAD, FROZEN, FAILED = b"D", b"F", b"E"  # each is followed by the index of the process
_TOKEN = 16  # bytes by which a process of this run is known
_ADDRESS = 64  # bytes that an address takes at most


def _own_address() -> str:
    """The address by which other machines reach this one; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # of a network kept for documentation
        return str(probe.getsockname()[0])
    return "127.0.0.1"  # no network: all processes are here


class _Line:
    """A connection to one other process: two threads that say and hear that both live."""

    def __init__(self, connection: socket.socket, index: int, watch: "_Watch") -> None:
        self._connection, self._index, self._watch = connection, index, watch
        self._lock = threading.Lock()
        connection.settimeout(PATIENCE)
        self.closed = threading.Event()
        for work in (self._hear, self._beat):
            threading.Thread(target=work, name=f"peer {index}", daemon=True).start()

    def say(self, message: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(message)

    def _beat(self) -> None:
        while not self._watch.left.wait(BEAT):
            self.say(ALIVE)

    def _hear(self) -> None:
        found = self._heard()
        self.closed.set()
        if found is not None:
            self._watch.gone(*found)

    def _heard(self) -> tuple[int, bytes] | None:
        """Which process is gone, and how; None when the other one leaves in order."""
        since = time.monotonic()
        while True:
            try:
                heard = self._connection.recv(1)
            except TimeoutError:
                if time.monotonic() - since < PATIENCE + 5 * BEAT:
                    return self._index, FROZEN
                heard = ALIVE  # it was this process that stood still
            except OSError:
                heard = b""
            since = time.monotonic()
            if heard == LEAVING:
                return None
            if heard in (DEAD, FROZEN, FAILED):
                index = self._connection.recv(4, socket.MSG_WAITALL)
                return (struct.unpack("!I", index)[0] if len(index) == 4 else self._index), heard
            if not heard:
                return self._index, DEAD


class _Watch:
    """The lines of this process: of process 0 to all others, of any other to process 0."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        # Not asked of jax later: its runtime may be ending then.
        self._index, self._count = jax.process_index(), jax.process_count()
        self.left = threading.Event()
        self._ending = threading.Lock()
        self._lines: list[_Line] = []
        self._lines += [_Line(each, index, self) for index, each in connections.items()]

    def gone(self, index: int, how: bytes) -> None:
        """Tells all others, and ends this process, unless it is leaving anyway."""
        if self.left.is_set():
            return
        with self._ending:
            if self._index == 0:
                self._tell(how + struct.pack("!I", index))
            # An error that all of them meet is told by each, with a status of its own.
            if how == FAILED and self.left.wait(VERDICT):
                return
            if self._index == 0:
                time.sleep(BEAT / 2)  # the others end before jax tells them that this one does
            self._end(index, how)

    def _end(self, index: int, how: bytes) -> None:
        """One line, and the exit status of what is to be started again."""
        why = {
            DEAD: "is gone",
            FROZEN: f"has not answered for {PATIENCE:.0f} s",
            FAILED: "ended with an error, which its own output tells",
        }[how]
        console.stop_now(
            f"stopped   process {index} of {self._count} {why}; the same command, in all "
            "processes, continues"
        )

    def _tell(self, message: bytes) -> None:
        for line in self._lines:
            line.say(message)

    def leave(self, message: bytes = LEAVING) -> None:
        """From now on nobody is missed, and this process is not."""
        self.left.set()
        self._tell(message)

    def leave_failed(self) -> None:
        """As `leave`, after an error; process 0 lets the others end before it."""
        self.leave(FAILED + struct.pack("!I", self._index))
        end = time.monotonic() + VERDICT + 2 * BEAT
        if self._index == 0:
            for line in self._lines:
                line.closed.wait(max(0.0, end - time.monotonic()))


def _accepted(listener: socket.socket, token: bytes) -> dict[int, socket.socket]:
    """The connections of all other processes, by index; those that came in time."""
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + PATIENCE
    while len(found) < jax.process_count() - 1 and time.monotonic() < end:
        listener.settimeout(max(end - time.monotonic(), 0.01))
        try:
            connection, _ = listener.accept()
            connection.settimeout(BEAT)
            said = connection.recv(_TOKEN + 4, socket.MSG_WAITALL)
        except OSError:  # nobody, or nobody of this run
            continue
        if len(said) == _TOKEN + 4 and secrets.compare_digest(said[:_TOKEN], token):
            found[struct.unpack("!I", said[_TOKEN:])[0]] = connection
        else:
            connection.close()
    return found


def _connect() -> dict[int, socket.socket]:
    """The connections that this process holds, by the index of the process at the other end."""
    main = devices.is_main_process()
    said = np.zeros(_TOKEN + _ADDRESS, np.uint8)
    with contextlib.ExitStack() as stack:
        if main:
            listener = stack.enter_context(socket.create_server(("", 0)))
            address = f"{_own_address()} {listener.getsockname()[1]}"
            content = secrets.token_bytes(_TOKEN) + address.encode().ljust(_ADDRESS)
            said = np.frombuffer(content, np.uint8)
        heard = np.asarray(devices.from_main(said)).astype(np.uint8).tobytes()
        token, (host, port) = heard[:_TOKEN], heard[_TOKEN:].decode().split()
        if main:
            return _accepted(listener, token)
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), timeout=PATIENCE / 2)
            connection.sendall(token + struct.pack("!I", jax.process_index()))
            return {0: connection}
        return {}


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While it is entered, a process that dies or freezes ends all others within seconds.

    They end with the status of what is to be started again, each saying which process is gone. One
    that leaves without an error is not missed. Where some cannot be reached, that is said, and
    those are not watched.
    """
    if jax.process_count() == 1:
        yield
        return
    connections = _connect()
    expected = jax.process_count() - 1 if devices.is_main_process() else 1
    if len(connections) < expected:
        console.log(
            "WARNING   some processes cannot be reached over TCP, so that nobody notices at once "
            "when one of them is gone"
        )
    watch = _Watch(connections)
    try:
        yield
    except BaseException as error:
        # A collective operation with a peer that is gone is an error too, and then this is the end.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            time.sleep(VERDICT)
        watch.leave_failed()
        raise
    watch.leave()


def end_with(status: int) -> NoReturn:
    """Ends a program that failed, here and now, when what it had open is closed.

    An end in order would wait for the other processes of a run, which are ending too, and for
    threads of libraries, of which some wait ten minutes for what has failed.
    """
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
