"""One writer of a working directory at a time: who holds it, and whether that one still lives.

The lock is a file that says which process made it. On the same machine the process is asked for;
from elsewhere, where only the file is seen, its time is watched, which the holder renews every few
seconds, so that no two clocks are compared. A holder that is gone loses the lock.
"""

import contextlib
import datetime
import errno
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments import console, devices
from experiments.files.atomic import read_json, write_json

NAME = "lock"
BEAT = 5.0  # seconds after which a holder renews the time of its file
PATIENCE = 30.0  # seconds without a sign of life after which a holder elsewhere is gone
# What file systems without hard links answer.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK)


class InUse(ValueError):
    """A working directory that another process writes to."""


class _Held(Exception):
    """A lock whose holder lives: `args[0]`, None where it does not say who that is."""


class Holder(NamedTuple):
    """A process, so that another can tell whether it lives.

    space: the machine since its start, and the process numbers that are seen there; empty where
        the system does not tell.
    began: when the process did, in the system's count; a number can be given again.
    token: tells this lock from any other.
    """

    host: str
    space: str
    pid: int
    began: str
    since: str
    doing: str
    token: str


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began; "" where it is not there, or only waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _myself(doing: str) -> Holder:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    pid = os.getpid()
    return Holder(
        socket.gethostname(), _space(), pid, _began(pid), now, doing, secrets.token_hex(8)
    )


def _read(path: Path) -> Holder | None:
    """Who holds a lock; None of one that is gone or says nothing."""
    try:
        content = read_json(path)
        found = Holder(**{name: content[name] for name in Holder._fields})
        return found if str(found.token).isalnum() else None
    except (OSError, ValueError, KeyError):
        return None


def _time(path: Path) -> int | None:
    """When a lock was renewed, as the file system has it; None where it is gone.

    The file is opened, for then a network file system asks its server.
    """
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _make(path: Path, holder: Holder) -> bool:
    """Makes the file, whole, unless it is there."""
    content = json.dumps(holder._asdict()) + "\n"
    temporary = path.with_name(f".{path.name}.{holder.token}")
    temporary.write_text(content)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError), path.open("x") as stream:
            stream.write(content)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def _lives(path: Path, holder: Holder | None) -> bool:
    """Whether the holder of a lock does; waits for a sign of life where nobody can be asked."""
    if holder is not None and holder.space and holder.space == _space():
        return _began(holder.pid) == holder.began
    before, end = _time(path), time.monotonic() + PATIENCE
    if before is None:
        return False
    who = "somebody" if holder is None else f"process {holder.pid} on {holder.host}"
    console.log(f"waiting   up to {PATIENCE:.0f} s for a sign of life of {who}, who holds {path}")
    while time.monotonic() < end:
        time.sleep(min(BEAT, PATIENCE) / 5)
        now = _time(path)
        if now != before:
            return now is not None
    return False


def _in_use(workdir: Path, holder: Holder | None) -> InUse:
    path = workdir / NAME
    if holder is None:
        who, how = f"somebody holds {path}", "Wait until that has ended"
    else:
        who = (
            f"process {holder.pid} on {holder.host} writes to it since {holder.since} "
            f"({holder.doing})"
        )
        how = "Wait until it has ended, end it"
    return InUse(
        f"--workdir={workdir} is in use: {who}, and one program at a time may. {how}, or choose "
        f"another --workdir."
    )


def _take(path: Path, holder: Holder) -> Holder | None:
    """Takes a lock, from a holder who is gone too, whom it returns.

    Raises:
        _Held: somebody else holds it and lives.
    """
    while not _make(path, holder):
        found = _read(path)
        if _lives(path, found):
            raise _Held(found)
        if _change(path, found, holder):
            return found
    return None


def _change(path: Path, found: Holder | None, holder: Holder, release: bool = False) -> bool:
    """Puts the lock of `holder` in the place of that of `found`, or nothing, if that is there.

    Who does that holds another lock meanwhile, named by the one that is to go, and looks again
    under it: of several who found the same holder gone, none can remove what another has made.
    """
    claim = path.with_name(f".{path.name}.{found.token if found else 'damaged'}")
    mine = holder._replace(token=secrets.token_hex(8))
    try:
        _take(claim, mine)
    except _Held:
        time.sleep(0.01)
        return False
    try:
        if not path.exists() or _read(path) != found:
            return False
        if release:
            path.unlink()
        else:
            write_json(path, holder._asdict())
        return True
    finally:
        claim.unlink(missing_ok=True)


def _renew(path: Path, holder: Holder, ended: threading.Event) -> None:
    """Shows that the holder lives, until it has ended; ends the program where the lock is lost.

    That happens to a process that was cut off from the file system, or stood still, for longer
    than others wait.
    """
    while not ended.wait(BEAT):
        try:
            os.utime(path)
            found = _read(path)
        except OSError:
            found = _read(path)
            if found is None and path.parent.is_dir() and not path.exists():
                _make(path, holder)
            continue
        if found is not None and found.token != holder.token:
            os.write(2, f"error: {_in_use(path.parent, found)}\n".encode())
            os._exit(console.STOPPED)


@contextlib.contextmanager
def only_writer(workdir: Path, doing: str) -> Iterator[None]:
    """Nobody else is in here for this working directory, on any machine that sees it.

    To be entered by every process of a program; the main one holds the lock.

    Args:
        doing: what others are told.

    Raises:
        InUse: in every process, if another program is.
    """
    holder, refusal = _myself(doing), None
    path = workdir / NAME
    if devices.is_main_process():
        try:
            gone = _take(path, holder)
        except _Held as error:
            refusal = _in_use(workdir, error.args[0])
        else:
            if gone is not None:
                console.log(
                    f"lock      of process {gone.pid} on {gone.host} ({gone.since}), which is "
                    "gone, taken over"
                )
    if not devices.all_agree(refusal is None):
        raise refusal or InUse(f"--workdir={workdir} is in use, as the main process tells.")
    if not devices.is_main_process():
        yield
        return

    def release() -> None:
        with contextlib.suppress(OSError):  # in a folder that cannot be written to any more
            while _read(path) == holder and not _change(path, holder, holder, release=True):
                pass

    with contextlib.ExitStack() as stack:
        stack.callback(release)
        stack.enter_context(console.at_stop(release))
        stack.enter_context(console.meanwhile(functools.partial(_renew, path, holder)))
        yield
