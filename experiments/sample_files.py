"""A folder of samples: npz files or PNG files, found again by index after an interruption."""

import contextlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from experiments import images
from experiments.files.atomic import digest, read_json, write_bytes, write_json
from experiments.files.tensors import read_npz, write_npz
from experiments.methods.method import dtype_of
from experiments.workdir.config import read_config
from experiments.workdir.protocols import renewed_protocol

ABOUT = "samples.json"  # what the samples in a folder are of
PARTS = "parts"  # folder of what an interrupted sampling has drawn
COLUMNS = ("arr_0", "indices", "finite", "evaluations")  # of every npz, one row a sample
WRITTEN = re.compile(r"samples(_\d+-\d+)?\.npz")


def parse_indices(text: str) -> list[int]:
    """The numbers of `0-63` or `3,7,10-12`, each once, in their order.

    Raises:
        ValueError: for anything else.
    """
    found: dict[int, None] = {}
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(
                f"--seeds={text} is not understood at {word!r}: give numbers of samples and ranges "
                "of them, such as 0-63 or 3,7,10-12."
            )
        last = int(match[2] or match[1])
        if last >= 2**31:
            raise ValueError(f"--seeds={text}: {last} is beyond the last sample, {2**31 - 1}.")
        found |= dict.fromkeys(range(int(match[1]), last + 1))
    return list(found)


def written_indices(indices: Sequence[int]) -> str:
    """The shortest text that `parse_indices` reads as these."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class Rows(NamedTuple):
    """Some samples, as npz files hold them: uint8[n, H, W, C] of --mode=sample.

    Those of metrics alone may be rounded otherwise, or float32[n, K, H, W, C], the estimates of x_0
    on the way.
    """

    arr_0: np.ndarray
    indices: Int64[np.ndarray, " n"]
    finite: np.ndarray  # bool[n]
    evaluations: np.ndarray  # i32[n], of the denoiser behind each


class Facts(NamedTuple):
    """The contents of a file of samples, but for its pixels."""

    indices: np.ndarray  # i64[n]
    pixels: bool  # False where they are in PNG files
    counted: bool  # whether it says how often the network was called, which older ones do not


class SampleFiles:
    """Samples on disk, written by the main process only.

    folder: where they are, or will be.
    about: all that the samples depend on but for which of them are drawn.
    older: what a set depends on that does not say so, being older than the fields.
    beside: folders that may hold samples of the same set, which are read and not written to.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        older: Mapping[str, Any] = MappingProxyType({}),
        beside: Sequence[Path] = (),
    ) -> None:
        self.folder, self.about, self._older, self._beside = folder, about, older, beside
        self._last: tuple[Any, dict[str, np.ndarray]] | None = None  # the file that was read last
        self._known: dict[Any, Facts] = {}  # of every file of the set, which are many

    def _same(self, folder: Path) -> dict[str, Any] | None:
        """The record of the samples in a folder, where they are of this set; else None."""
        path = folder / ABOUT
        if not path.is_file():
            return None
        found = read_json(path)
        same = _comparable({**self._older, **found}) == _comparable(self.about)
        return found if same else None

    @property
    def _parts(self) -> Path:
        """The folder of samples that are in no file of the set yet, named by the set's record."""
        return self.folder / PARTS / digest(self._same(self.folder) or self.about)

    @property
    def is_free(self) -> bool:
        """Whether the folder holds nothing, or samples of the same set."""
        empty = not self.folder.exists() or not any(self.folder.iterdir())
        return empty or self._same(self.folder) is not None

    def prepare(self) -> None:
        """Marks the folder as of this set; files of another are removed."""
        if not self.is_free:
            for path in self._npz():
                path.unlink()
            for path in self._pictures():
                path.unlink()
        if self._same(self.folder) is None:
            write_json(self.folder / ABOUT, self.about)

    def _npz(self, folder: Path | None = None) -> list[Path]:
        folder = folder or self.folder
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if WRITTEN.fullmatch(path.name))

    def _pictures(self) -> list[Path]:
        return sorted(self.folder.glob("images/*/*.png"))

    def picture(self, index: int) -> Path:
        """The path of a sample's PNG file."""
        return _picture_in(self.folder, index)

    def done(self, pictures: bool) -> set[int]:
        """The samples that need not be drawn again."""
        if not self.is_free:
            return set()
        sources = [(path, self._facts(path)) for path in self._sources()]
        if pictures:
            found = {index for _, facts in sources for index in facts.indices.tolist()}
            there = {int(path.stem) for path in self._pictures()}
            return there if not found else there & found
        return {
            index
            for path, facts in sources
            for index in facts.indices.tolist()
            if facts.pixels or _picture_in(_folder_of(path), index).is_file()
        }

    def _sources(self) -> list[Path]:
        own = [*sorted(self._parts.glob("*.npz")), *self._npz()]
        for folder in self._beside:
            about = self._same(folder)
            if about is not None:
                parts = sorted((folder / PARTS / digest(about)).glob("*.npz"))
                every = [*parts, *self._npz(folder)]
                own += [path for path in every if self._facts(path).counted]
        return own

    def _facts(self, path: Path) -> Facts:
        """The facts of a file, which is opened once; raises as `_read`."""
        key = _version(path)
        if key not in self._known:
            self._known[key] = _facts(path)
        return self._known[key]

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of a file; those of the last one are kept, for whoever reads a few at a time.

        Raises:
            ValueError: if it is damaged.
        """
        key = _version(path)
        if self._last is None or self._last[0] != key:
            with _naming(path):
                self._last = key, read_npz(path)
        return dict(self._last[1])

    def keep(self, rows: Rows, pictures: bool) -> None:
        """Saves samples that were just drawn; none of them is lost from then on."""
        found = rows._asdict()
        if pictures:
            for index, pixels in zip(rows.indices, rows.arr_0, strict=True):
                write_bytes(self.picture(int(index)), images.png(pixels))
            found["arr_0"] = rows.arr_0[:, :0]
        name = f"{rows.indices.min():08d}-{rows.indices.max():08d}-{len(rows.indices)}"
        write_npz(self._parts / f"{name}.npz", found)

    def rows(self, wanted: Iterable[int], pictures: bool) -> Rows:
        """Samples that are there, in the order of `wanted`; raises as `_read`."""
        wanted = list(wanted)
        place = {index: row for row, index in enumerate(wanted)}
        left = set(wanted)
        out: dict[str, np.ndarray] = {}
        for path in self._sources():
            if not left:
                break
            there, pixels, _ = self._facts(path)
            rows = np.flatnonzero(np.isin(there, list(left)))
            files = None
            if not pictures and len(rows) and not pixels:
                places = [_picture_in(_folder_of(path), int(index)) for index in there]
                rows = np.array([row for row in rows if places[row].is_file()], int)
                files = [places[row] for row in rows]
            if not len(rows):
                continue
            left -= set(there[rows].tolist())
            to = [place[int(index)] for index in there[rows]]
            columns = _complete(self._read(path), pictures)
            found = {name: values[rows] for name, values in columns.items()}
            if files is not None:
                found["arr_0"] = np.stack([images.load(file) for file in files])
            for name, values in found.items():
                if name not in out:
                    shape = (len(wanted), *values.shape[1:])
                    out[name] = np.zeros(shape, values.dtype)
                out[name][to] = values
        return Rows(*(out[name] for name in COLUMNS))

    def pixels(self, wanted: Sequence[int], pictures: bool) -> UInt8[np.ndarray, "n h w c"]:
        """Of samples that are there."""
        if not pictures:
            return self.rows(wanted, pictures).arr_0
        return np.stack([images.load(self.picture(index)) for index in wanted])

    def finish(self, files: Sequence[Sequence[int]], pictures: bool) -> list[Path]:
        """Turns what was kept into the files of the set, one for each row of `files`.

        For PNG files the npz has no pixels. Files whose samples are all in the new ones go.
        """
        new = []
        for indices in files:
            whole = len(files) == 1 and list(indices) == list(range(len(indices)))
            numbers = "" if whole else f"_{min(indices):08d}-{max(indices):08d}"
            path = self.folder / f"samples{numbers}.npz"
            rows = self.rows(indices, pictures)
            write_npz(path, rows._asdict(), compressed=True)
            new.append(path)
        covered = {index for indices in files for index in indices}
        for path in set(self._npz()) - set(new):
            if covered.issuperset(self._facts(path).indices.tolist()):
                path.unlink()
        return new

    def are_finished(self, indices: Sequence[int], pictures: bool) -> bool:
        """True where these samples are in files of this very folder, and `clear` was called."""
        if self._parts.is_dir() and any(self._parts.glob("*.npz")):
            return False
        own = [self._facts(path) for path in self._npz()]
        there = (facts.indices.tolist() for facts in own if pictures or facts.pixels)
        return set(indices) <= {index for found in there for index in found}

    def clear(self) -> None:
        """Removes what was kept on the way, once everything that is made of it is there."""
        for path in self._parts.glob("*.npz"):
            path.unlink()
        for folder in (self._parts, self._parts.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _comparable(about: dict[str, Any]) -> dict[str, Any]:
    """As newer files have it, and without how many there are, which older ones say."""
    return {n: value for n, value in renewed_protocol(about).items() if n != "num_images"}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says of a file that is damaged what can be done."""
    try:
        yield
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}, a file of samples, is damaged; delete it, and they are drawn again. ({error})"
        ) from error


def _picture_in(folder: Path, index: int) -> Path:
    """The path of a sample's PNG file in its set's folder, a thousand to a folder of images."""
    return folder / "images" / f"{index - index % 1000:08d}" / f"{index:08d}.png"


def _folder_of(path: Path) -> Path:
    """The folder of the set that a file of samples belongs to, which may be one of its parts."""
    return path.parent.parent.parent if path.parent.parent.name == PARTS else path.parent


def _version(path: Path) -> tuple[Path, int, int]:
    """A name of a file as it is now."""
    found = path.stat()
    return path, found.st_mtime_ns, found.st_ino


def _facts(path: Path) -> Facts:
    """The facts of a file, whose pixels are not read."""
    with _naming(path), np.load(path, allow_pickle=False) as archive:
        with archive.zip.open("arr_0.npy") as stream:
            np.lib.format.read_magic(stream)
            shape = np.lib.format.read_array_header_1_0(stream)[0]
        older = "indices" not in archive.files
        indices = np.arange(shape[0]) if older else archive["indices"]
        return Facts(indices, 0 not in shape, "evaluations" in archive.files)


def _complete(arrays: dict[str, np.ndarray], pictures: bool) -> dict[str, np.ndarray]:
    """With the columns that older files lack, and without pixels that are in PNG files."""
    count = len(arrays["arr_0"])
    if pictures:
        arrays["arr_0"] = arrays["arr_0"][:, :0]
    older = {
        "indices": np.arange(count),
        "finite": np.ones(count, bool),
        "evaluations": np.zeros(count, np.int32),
    }
    return older | arrays


def set_of_run(workdir: Path, about: dict[str, Any], folder: Path) -> SampleFiles:
    """The samples of a set that are in `folder`, and in any folder of the run.

    An older set that does not say so is of what the run's network computed in.
    """
    older = {"dataset": about["dataset"], "dtype": about["dtype"]}
    if (workdir / "config.json").is_file():
        older["dtype"] = dtype_of(read_config(workdir))
    own, kept = workdir / "samples", workdir / "evaluation"
    every = [own, *sorted(own.glob("*")), *sorted(kept.glob("samples_*"))]
    return SampleFiles(folder, about, older, [each for each in every if each != folder])
