"""Listing of pictures: those in a folder and below or in an archive, and what is left out."""

import os
from collections import Counter, deque
from collections.abc import Iterable

from experiments.data.reader import PLUGINS, extensions

# Beside names that begin with a dot: what macOS, Synology and Windows keep beside pictures.
HIDDEN = frozenset(["__MACOSX", "@eaDir", "$RECYCLE.BIN"])
NAMED = 3  # of those left out of a kind


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none that its owner put there."""
    return (name.startswith(".") and name not in (".", "..")) or name in HIDDEN


class Listing:
    """Paths of pictures with "/", relative to where they were looked for, in order.

    names: the paths.
    hidden, seen_before, unreadable: paths of what was left out; the latter two of folders.
    others: how many files ended in what no picture does, by that.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.hidden: list[str] = []
        self.seen_before: list[str] = []
        self.unreadable: list[str] = []
        self.others: Counter[str] = Counter()

    def add(self, path: str) -> None:
        """A file that is not hidden, among the pictures or the others."""
        end = os.path.splitext(path)[1].lower()
        if end in extensions():
            self.names.append(path)
        else:
            self.others[end or "without an ending"] += 1

    def left_out(self) -> str:
        """All that was left out, counted; "" where nothing was."""
        parts = []
        if self.others:
            kinds = [f"{kind} {count:,}" for kind, count in self.others.most_common(NAMED)]
            more = ", ..." if len(self.others) > NAMED else ""
            parts.append(f"{self.others.total():,} of other kinds ({', '.join(kinds)}{more})")
        for paths, what in (
            (self.hidden, "hidden"),
            (self.seen_before, "linked to what is read under another name"),
            (self.unreadable, "that cannot be opened"),
        ):
            if paths:
                more = ", ..." if len(paths) > NAMED else ""
                parts.append(f"{len(paths):,} {what} ({', '.join(paths[:NAMED])}{more})")
        missing = sorted({PLUGINS[end] for end in self.others if end in PLUGINS})
        hint = f"; `pip install {' '.join(missing)}` reads some of them" if missing else ""
        return "; ".join(parts) + hint

    def check(self, where: str) -> None:
        """Refuses a place without a picture.

        Raises:
            FileNotFoundError: saying what is there.
        """
        if not self.names:
            found = self.left_out()
            raise FileNotFoundError(
                f"No picture (.jpg, .png or what else Pillow reads) is in {where}"
                f"{f': left out were {found}' if found else ''}."
            )


def list_folder(folder: str) -> Listing:
    """The pictures in a folder and below.

    Links are followed, and each folder is read once, by device and inode: under its own name where
    it has one below `folder`, else under that of the first link.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}; a folder of pictures is needed.")
    found, read = Listing(), set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        place = os.path.join(folder, path)
        try:
            about = os.stat(place)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            found.unreadable.append(path or folder)
            continue
        if (about.st_dev, about.st_ino) in read:
            found.seen_before.append(path)
            continue
        read.add((about.st_dev, about.st_ino))
        for entry in entries:
            name = f"{path}/{entry.name}" if path else entry.name
            if is_hidden(entry.name):
                found.hidden.append(name)
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(name)
            else:
                found.add(name)
    found.names.sort()
    found.check(f"{folder} or below")
    return found


def list_archive(members: Iterable[str], archive: str) -> Listing:
    """The pictures among the members of an archive, by their names in it.

    Raises:
        FileNotFoundError: none is one.
    """
    found = Listing()
    for name in sorted(set(members)):
        if any(map(is_hidden, name.split("/"))):
            found.hidden.append(name)
        elif not name.endswith("/"):
            found.add(name)
    found.check(archive)
    return found
