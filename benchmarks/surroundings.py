"""Disturbs what lies around a run, its folder, its clock and its bucket, and counts how it ends.

    python -m benchmarks.surroundings folder    # needs /dev/fuse, libfuse 2 and the package fusepy
    python -m benchmarks.surroundings clock     # needs faketime
    python -m benchmarks.surroundings bucket    # needs gcsfs and gcp-storage-emulator

The run is that of `benchmarks.reliability`, as is what is compared; each prints a row for the table
of docs/reliability.md.
"""

import argparse
import collections
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reliability import (
    command,
    finish,
    measured,
    outcome,
    report,
    start,
    tail,
    unlike,
)

STALL = 40.0  # seconds for which nothing answers
LIMIT = 120.0  # seconds after which a program hangs


def serve(behind: str, mount: str, faults: str) -> None:
    """A folder that shows another one; a file `stall` or `read_only` in `faults` disturbs it."""
    import fuse

    def real(path: str, writes: bool = False) -> str:
        while Path(faults, "stall").exists():
            time.sleep(0.1)
        if writes and Path(faults, "read_only").exists():
            raise fuse.FuseOSError(errno.EROFS)
        return behind + path

    def fields(found: Any, prefix: str) -> dict[str, Any]:
        return {name: getattr(found, name) for name in dir(found) if name.startswith(prefix)}

    class Folder(fuse.Operations):
        def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
            return fields(os.lstat(real(path)), "st_")

        def statfs(self, path: str) -> dict[str, Any]:
            return fields(os.statvfs(real(path)), "f_")

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", "..", *os.listdir(real(path))]

        def open(self, path: str, flags: int) -> int:
            return os.open(real(path), flags)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(real(path, writes=True), os.O_RDWR | os.O_CREAT, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            real(path)
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            real(path, writes=True)
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: Any = None) -> None:
            os.truncate(real(path, writes=True), length)

        def rename(self, old: str, new: str) -> None:
            os.rename(real(old, writes=True), behind + new)

        def link(self, new: str, old: str) -> None:
            os.link(behind + old, real(new, writes=True))

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(real(path, writes=True), mode)

        def unlink(self, path: str) -> None:
            os.unlink(real(path, writes=True))

        def rmdir(self, path: str) -> None:
            os.rmdir(real(path, writes=True))

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(real(path, writes=True), mode)

        def utimens(self, path: str, times: Any = None) -> None:
            os.utime(real(path, writes=True), times)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            os.fsync(fh)

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

    fuse.FUSE(Folder(), mount, foreground=True)


@contextmanager
def mounted(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Such a folder, and that of its faults."""
    behind, mount, faults = folder / "behind", folder / "mount", folder / "faults"
    for path in (behind, mount, faults):
        path.mkdir()
    program = [sys.executable, "-m", "benchmarks.surroundings", "serve"]
    server = start([*program, *map(str, (behind, mount, faults))], folder / "serve.log")
    try:
        while not mount.is_mount():
            assert server.poll() is None, tail(folder / "serve.log", 5)
            time.sleep(0.1)
        yield mount, faults
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
        server.kill()


def ended(process: "subprocess.Popen[bytes]") -> str:
    """How a program ends that is disturbed."""
    begin = time.monotonic()
    try:
        status = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "HANGS"
    return f"status {status} after {time.monotonic() - begin:.0f} s"


def undisturbed(folder: Path) -> tuple[dict[str, Any], float]:
    """What the run comes to, and how long it takes."""
    begin = time.monotonic()
    assert finish(command(folder / "whole"), folder / "log") == 0, tail(folder / "log", 5)
    return outcome(folder / "whole"), time.monotonic() - begin


def folders(folder: Path, trials: int, draw: random.Random) -> None:
    """The folder of a run stalls for a while, or can be written to no more, at a random moment."""
    expected, seconds = undisturbed(folder)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with mounted(folder) as (mount, faults):
        for trial in range(trials):
            fault, log = ("stall", "read_only")[trial % 2], folder / f"{trial}.log"
            workdir = mount / str(trial)
            process = start(command(workdir), log)
            time.sleep(draw.uniform(0.1, 0.9) * seconds)
            (faults / fault).touch()
            if fault == "stall":
                time.sleep(STALL)
                (faults / fault).unlink()
                how = f"status {process.wait()}"
            else:
                how = ended(process)
                (faults / fault).unlink()
            if not how.startswith("status 0"):
                how += f", then {finish(command(workdir), log)}"
            other = unlike(workdir, expected)
            print(f"{trial} {fault}: {how}, other: {other or 'nothing'}; {tail(log)}", flush=True)
            kind = "HANGS" if "HANGS" in how else f"OTHER {other}" if other else "equal at last"
            counts[fault][kind] += 1
    for fault, found in counts.items():
        report(f"the folder: {fault}", found)


def clocks(folder: Path, trials: int, draw: random.Random) -> None:
    """kill -9 at a random moment, and the same command with the clock a year back."""
    expected, seconds = undisturbed(folder)
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        workdir, log = folder / str(trial), folder / f"{trial}.log"
        process = start(command(workdir), log)
        time.sleep(draw.uniform(0.2, 0.9) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = finish(["faketime", "-f", "-365d", *command(workdir)], log)
        other = unlike(workdir, expected) if status == 0 else f"status {status}"
        print(f"{trial}: other: {other or 'nothing'}; {tail(log)}", flush=True)
        counts[f"OTHER {other}" if other else "equal"] += 1
    report("the clock a year back after a kill -9", counts)


def buckets(folder: Path, trials: int, draw: random.Random) -> None:
    """A bucket is frozen, a machine lost with its disk, or another one writes, in turn."""
    from benchmarks.bucket import NAME, Bucket

    expected, seconds = undisturbed(folder)
    bucket = Bucket()
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        one, two, log = folder / f"{trial}", folder / f"{trial}b", folder / f"{trial}.log"
        flags = [f"--checkpoints=gs://{NAME}/{trial}"]
        options = {"env": bucket.environment}
        process = start(command(one, *flags), log, **options)
        time.sleep(draw.uniform(0.3, 0.9) * seconds)
        what = ("frozen", "lost", "another writer")[trial % 3]
        if what == "frozen":
            with bucket.lock:
                time.sleep(STALL)
            how, last = f"status {process.wait()}", one
        elif what == "lost":
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(one)
            how, last = f"status {finish(command(two, *flags), log, **options)}", two
        else:
            second = start(command(two, *flags), folder / f"{trial}b.log", **options)
            how, last = f"the first {ended(process)}, the second {second.wait()}", two
        steps = {int(name.split("/")[2]) for name in bucket.names(f"{trial}/checkpoints/")}
        meta = bucket.storage.get_file(NAME, f"{trial}/checkpoints/{max(steps)}/meta/metadata")
        found = {"checksums": json.loads(meta)["checksums"], **measured(last)}
        compared = ("checksums", "samples", "values")  # the log begins anew in another folder
        same = all(found[name] == expected[name] for name in compared)
        print(f"{trial} {what}: {how}, {'equal' if same else 'OTHER'}; {tail(log)}", flush=True)
        counts[f"{what}: {'equal' if same else 'OTHER'}"] += 1
    bucket.close()
    report("checkpoints in an emulated bucket", counts)


def main(argv: Sequence[str]) -> int:
    """Runs one kind of trial in a folder of its own."""
    if argv[:1] == ["serve"]:
        serve(*argv[1:])
        return 0
    kinds = {"folder": folders, "clock": clocks, "bucket": buckets}
    parser = argparse.ArgumentParser("benchmarks.surroundings", description=__doc__)
    parser.add_argument("what", choices=[*kinds])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix=f"surroundings_{options.what}_"))
    print(f"in {folder}", flush=True)
    kinds[options.what](folder, options.trials, random.Random(options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
