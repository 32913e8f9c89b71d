"""A process that dies or freezes ends the others within seconds, and says that it was so."""

import contextlib
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.console import STOPPED
from tests.experiments.processes import processes
from tests.started import PIPE, Popen, run, started

PEER = str(pathlib.Path(__file__).with_name("peer.py"))
PATIENCE = 3.0


class Peers:
    """Processes of one run, whose lines are collected as they come."""

    def __init__(self, running: list[Popen]) -> None:
        self.all = running
        self.said: list[list[str]] = [[] for _ in self.all]
        self.ready = [threading.Event() for _ in self.all]
        for i in range(len(running)):
            threading.Thread(target=self._read, args=(i,), daemon=True).start()
        for event in self.ready:
            assert event.wait(120)

    def _read(self, i: int) -> None:
        for line in self.all[i].stdout:
            self.said[i].append(line.strip())
            if line.strip() == "ready":
                self.ready[i].set()

    def end(self, seconds: float) -> tuple[list[int], float]:
        """Exit statuses, and how long it took for all to end."""
        begin = time.monotonic()
        found = [process.wait(seconds) for process in self.all]
        time.sleep(0.2)  # the last lines
        return found, time.monotonic() - begin


@pytest.fixture
def start() -> Iterator[Callable[..., Peers]]:
    with contextlib.ExitStack() as stack:
        yield lambda count, *fault: Peers(
            stack.enter_context(processes(count, PEER, last=(str(PATIENCE), *fault)))
        )


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_a_dead_process_ends_the_others_at_once(start, count: int, victim: int) -> None:
    peers = start(count)
    peers.all[victim].kill()
    statuses, seconds = peers.end(30)
    for i in set(range(count)) - {victim}:
        assert statuses[i] == STOPPED, peers.said[i]
        line = f"stopped   process {victim} of {count} is gone; the same command, in all"
        assert any(said.startswith(line) for said in peers.said[i])
    assert seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_frozen_process_ends_the_others_and_itself_when_it_wakes(start, victim: int) -> None:
    peers = start(3)
    peers.all[victim].send_signal(signal.SIGSTOP)
    others = [process for i, process in enumerate(peers.all) if i != victim]
    begin = time.monotonic()
    assert [process.wait(60) for process in others] == [STOPPED, STOPPED]
    assert time.monotonic() - begin > PATIENCE - 1.5
    peers.all[victim].send_signal(signal.SIGCONT)
    peers.end(60)
    for i in {0, 1, 2} - {victim}:
        text = "\n".join(peers.said[i])
        assert re.search(rf"process {victim} of 3 has not answered for 3 s", text), text


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others(start) -> None:
    peers = start(2, "error")
    statuses, _ = peers.end(30)
    assert statuses[0] == STOPPED
    assert any("process 1 of 2 ended with an error" in line for line in peers.said[0])
    assert any("of one process only" in line for line in peers.said[1])


@pytest.mark.slow
def test_a_process_that_leaves_in_order_is_not_missed(start) -> None:
    peers = start(2, "leave")
    statuses, seconds = peers.end(60)
    assert statuses == [0, 0], peers.said
    assert all(said[-1] == "left" for said in peers.said) and seconds > 2 * PATIENCE - 1


def test_strangers_are_no_processes_of_the_run() -> None:
    """Who connects without the run's token is dropped, and the right one found all the same."""
    program = """
import secrets, socket, struct, threading
import jax
jax.process_count = lambda: 2
from experiments import peers
listener, token = socket.create_server(("", 0)), secrets.token_bytes(16)
def call(*said):
    with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as connection:
        for part in said: connection.sendall(part)
        connection.settimeout(5); print(connection.recv(1))
def strangers():
    call(b"x" * 20); call(b"GET / HTTP/1.1"); call(token + struct.pack("!I", 1))
thread = threading.Thread(target=strangers, daemon=True); thread.start()
found = sorted(peers._accepted(listener, token))
thread.join(0.5)
print("found", found)
"""
    done = run([sys.executable, "-c", program], timeout=60)
    assert "found [1]" in done.stdout, done


def test_a_program_that_failed_waits_for_no_thread_and_no_child() -> None:
    """Threads of libraries wait for minutes for what has failed."""
    program = (
        "import multiprocessing, threading, time\n"
        "from experiments import peers\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "child.start()\n"
        "print(child.pid)\n"
        "peers.end_with(7)\n"
    )
    with started([sys.executable, "-c", program], stdout=PIPE) as process:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 7
        child = pathlib.Path("/proc", said.strip())
        until = time.monotonic() + 10
        while child.exists() and "State:\tZ" not in (child / "status").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
