"""Checkpoints that are kept in a bucket, gs://, and not in the working directory.

Where its folder `checkpoints` would be, the working directory then has a file of that name, whose
one line is the address. Who takes up the same command on another machine, with an empty working
directory, goes on from the checkpoints at that address.
"""

import contextlib
import datetime
import functools
import importlib.util
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import console, devices
from experiments.files.atomic import write_text
from experiments.workdir.checkpoint import BEST, NAME, REMOTE, folder_of
from experiments.workdir.outcome import USER_ERROR

WRITER = "writer.json"
# What TensorStore says of a bucket that does not answer, and gcsfs.
UNREACHABLE = ("retry attempts failed", "Cannot connect to host")
LOOK = 10.0  # seconds after which a writer looks whether another one began


def keep_at(workdir: Path, address: str) -> None:
    """Has the checkpoints of a working directory kept at an address, its best one there too.

    To be called by every process. What is at that address already is gone on from. Where nothing
    was saved yet the place may be changed.

    Args:
        address: gs://BUCKET/FOLDER, of this run alone.

    Raises:
        ValueError: if it is no such address; if the working directory has checkpoints elsewhere.
        ImportError: without the packages that reach a bucket.
    """
    bucket, _, folder = address.removeprefix(REMOTE).strip("/").partition("/")
    if not address.startswith(REMOTE) or not bucket or not folder:
        raise ValueError(
            f"--checkpoints={address} must be gs://BUCKET/FOLDER, of this run alone. Leave it out "
            "to keep checkpoints in --workdir."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ImportError(f"--checkpoints={address} needs gcsfs: pip install -e '.[gcs]'.")
    changes: list[tuple[Path, str]] = []
    for part in (Path(), Path(BEST)):
        place, there = workdir / part / NAME, folder_of(workdir / part)
        wanted = "/".join((REMOTE + bucket, folder, *part.parts, NAME))
        if str(there) == wanted:
            continue
        if there.exists() and any(there.iterdir()):
            raise ValueError(
                f"--checkpoints={address} would leave the checkpoints of {workdir} where they are, "
                f"in {there}. Leave it out to go on from them, copy them to {wanted} and move "
                f"{place} away, or choose another --workdir."
            )
        changes.append((place, wanted))
    devices.all_agree(True)  # all have looked before the main one writes, and none reads before
    if devices.is_main_process():
        for place, wanted in changes:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                place.rmdir()
            write_text(place, wanted + "\n")
    devices.all_agree(True)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a bucket did not answer any more."""
    while error is not None:
        if any(sign in str(error) for sign in UNREACHABLE):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def latest_writer(workdir: Path) -> Iterator[None]:
    """Ends this program once another one begins to write the same checkpoints in a bucket.

    In a bucket nobody can be asked whether it lives: whoever begins says so in a file beside the
    checkpoints, and whoever finds another name there than its own ends. So a machine that was taken
    away is followed at once. Nothing happens where checkpoints are in the working directory. To be
    entered by every process; the main one writes and looks.

    Raises:
        ValueError: in every process, if the bucket cannot be written to.
    """
    folder = folder_of(workdir)
    if not str(folder).startswith(REMOTE):
        yield
        return
    file, token = folder.parent / WRITER, secrets.token_hex(8)
    refusal = _begin(file, token) if devices.is_main_process() else ""
    if not devices.all_agree(not refusal):
        raise ValueError(
            f"{file} cannot be written: {refusal or 'the main process tells why'}. Is the bucket "
            "there, can it be reached, and may you write to it (gcloud auth application-default "
            "login)?"
        )
    if not devices.is_main_process():
        yield
        return
    with console.meanwhile(functools.partial(_watch, file, token), patience=1.0):
        yield


def _begin(file: Any, token: str) -> str:
    """Says who writes from now on; returns what is in the way."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "token": token}
    try:
        file.write_text(json.dumps(who) + "\n")
    except Exception as error:  # of a network, credentials or a bucket: of many libraries
        return f"{type(error).__name__}, {' '.join(str(error).split())}"
    return ""


def _watch(file: Any, token: str, ended: threading.Event) -> None:
    """Looks who writes, and ends the program when that is another one."""
    while not ended.wait(LOOK):
        try:
            found = json.loads(file.read_text())
        except Exception:  # a network that is gone for a while; saves tell of one that stays away
            continue
        if found["token"] != token:
            text = (
                f"error: process {found['pid']} on {found['host']} writes to {file.parent} since "
                f"{found['since']}, and one program at a time may: this one ends.\n"
            )
            os.write(2, text.encode())
            os._exit(USER_ERROR)
