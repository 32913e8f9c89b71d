"""What is known of a run from the files in its folder; nothing here changes them but `write`."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files.atomic import read_json, write_json
from experiments.workdir import outcome

FINAL = tuple(end.value for end in outcome.FINAL)  # states that starting again leaves alone
STATES = ("waiting", "queued", "running", "stopping", "stopped", "failed", *FINAL)


class Status(NamedTuple):
    """The content of status.json; without the file, a run that waits."""

    state: str = "waiting"  # one of STATES
    attempts: tuple[dict[str, Any], ...] = ()  # host, started, ended, exit_status
    message: str = ""  # one line: why it diverged, failed or stopped
    log_tail: tuple[str, ...] = ()  # the end of the log of a run that failed


def read(folder: Path) -> Status:
    """The status of the run in `folder`.

    Raises:
        ValueError: if the file is damaged or of another program, saying what to do.
    """
    path = folder / "status.json"
    if not path.is_file():
        return Status()
    content = read_json(path)
    lists: dict[str, Any] = {name: content.get(name) for name in ("attempts", "log_tail")}
    known = content.keys() == set(Status._fields) and content["state"] in STATES
    if not known or not all(isinstance(value, list) for value in lists.values()):
        raise ValueError(
            f"{path} is no status of a run: it must hold {', '.join(Status._fields)}, with one of "
            f"{', '.join(STATES)} for the state. Remove it to have the run started again."
        )
    return Status(**content | {name: tuple(value or ()) for name, value in lists.items()})


def ended(folder: Path) -> bool:
    """Whether starting the run in `folder` again would change nothing."""
    return read(folder).state in FINAL


def write(folder: Path, status: Status) -> None:
    """Replaces the status of the run in `folder`."""
    write_json(folder / "status.json", status._asdict())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[int | None]:
    """A file descriptor that marks the run in `folder` as being run, None if another process does.

    A program that inherits it keeps the mark, so that no second one starts beside an orphan.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()
