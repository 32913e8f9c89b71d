"""Mutation testing: do the tests notice a wrong number, one at a time?

    python -m tests.mutants [--jobs=N] [--only=NAME,...] [--timeout=SECONDS] [--unchecked] [--list]

Each mutant of tests/mutants_list.py is one place of the program broken, and names the tests that
claim it. They first run on the program as it is and must pass (--unchecked leaves that out), then
on each mutant and must fail. One that survives asks for a law that catches it.

All of it happens in temporary copies of the working tree, uncommitted changes included, which go
when the program ends, however it ends; what is shared is the cache of compiled functions
($JAX_COMPILATION_CACHE_DIR, .jax_cache by default), whose keys are the functions themselves.

Exit status: 0 where all were caught, 1 where one survived, 2 where the list is wrong or a test
fails by itself.
"""

import argparse
import ast
import collections
import contextlib
import enum
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from experiments.files import markdown
from tests.mutants_list import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).parents[1]
CARRIED = ("diffusion", "experiments", "launch", "benchmarks", "tests", "pyproject.toml")
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?([^/\s]+::\S+)", re.MULTILINE)


class Outcome(enum.Enum):
    """What became of a mutant; ERROR is of the list, not of the tests."""

    CAUGHT = "caught"
    TIMED_OUT = "caught, timed out"
    SURVIVED = "SURVIVED"
    ERROR = "ERROR"


class Verdict(NamedTuple):
    """The outcome of a mutant, the test or the reason behind it, and what the tests printed."""

    mutant: Mutant
    outcome: Outcome
    by: str
    seconds: float
    output: str = ""


def broken(mutant: Mutant, root: pathlib.Path) -> str:
    """The text of the mutant's file with the place broken."""
    return (root / mutant.file).read_text().replace(mutant.text, mutant.instead)


def mistakes(mutant: Mutant, root: pathlib.Path) -> list[str]:
    """All that keeps a record from being a mutant: its text, what it becomes, its tests."""
    path = root / mutant.file
    if not path.is_file():
        return [f"{mutant.name}: there is no file {mutant.file}"]
    found, source = [], path.read_text()
    count = source.count(mutant.text)
    if count != 1:
        found.append(f"{mutant.name}: {mutant.text!r} occurs {count} times in {mutant.file}, not 1")
    try:
        if ast.dump(ast.parse(broken(mutant, root))) == ast.dump(ast.parse(source)):
            found.append(f"{mutant.name}: {mutant.file} means the same with {mutant.instead!r}")
    except SyntaxError as error:
        found.append(f"{mutant.name}: {mutant.file} would be no Python ({error})")
    for claim in mutant.tests.split():
        file, _, name = claim.partition("::")
        if not (root / file).is_file() or name.partition("[")[0] not in ("", *_tests(root / file)):
            found.append(f"{mutant.name}: there is no test {claim}")
    return found if mutant.tests else [*found, f"{mutant.name}: no test claims it"]


def _tests(path: pathlib.Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


class Runs:
    """Runs of pytest, several at once, all of which `stop` ends."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._processes: set[subprocess.Popen[str]] = set()

    def pytest(
        self, folder: pathlib.Path, arguments: Sequence[str], seconds: float | None = None
    ) -> tuple[int | None, str]:
        """Exit status, None beyond so many seconds, and output of the tests of a copy of the tree.

        Args:
            folder: holds the copy, `tree`, and gets the tests' own files.
        """
        tree, cache = folder / "tree", {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
        command = [sys.executable, "-m", "pytest", f"--basetemp={folder / 'tmp'}", *arguments]
        with self._lock:
            if self._stopped:
                return None, ""
            process = subprocess.Popen(
                command,
                cwd=tree,
                env=cache | os.environ | {"PYTHONPATH": str(tree)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this program alone, which ends it
            )
            self._processes.add(process)
        with process:
            try:
                output, _ = process.communicate(timeout=seconds)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                _kill(process)
                with self._lock:
                    self._processes.discard(process)

    def stop(self) -> None:
        """Ends what runs, and lets nothing begin."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a process that is still there, and those that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def copy(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies what tests need of a working tree into `folder`/tree."""
    for name in CARRIED:
        source, target = root / name, folder / "tree" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target)


def judge(
    mutant: Mutant, root: pathlib.Path, runs: Runs, seconds: float, where: str | None = None
) -> Verdict:
    """Breaks one place of a copy of the tree and runs the tests that claim it.

    Args:
        mutant: a record without `mistakes`.
        seconds: after which its tests count as failed.
        where: a folder for temporary files.
    """
    begin = time.monotonic()

    def verdict(outcome: Outcome, by: str, output: str = "") -> Verdict:
        return Verdict(mutant, outcome, by, time.monotonic() - begin, output)

    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = pathlib.Path(name)
        copy(root, folder)
        (folder / "tree" / mutant.file).write_text(broken(mutant, root))
        status, output = runs.pytest(folder, ["-n", "0", "-x", *mutant.tests.split()], seconds)
    if status is None:
        return verdict(Outcome.TIMED_OUT, f"no end in {seconds:g} s")
    if status == 0:
        return verdict(Outcome.SURVIVED, "nothing", output)
    failed = FAILED.findall(output)
    if status == 1 and failed:
        return verdict(Outcome.CAUGHT, failed[0])
    not_loaded = "its tests cannot be loaded or are not there"
    reasons = {2: not_loaded, 4: not_loaded, 5: "no test ran"}
    return verdict(Outcome.ERROR, reasons.get(status, f"pytest ended with {status}"), output)


def judge_all(
    mutants: Sequence[Mutant], root: pathlib.Path, runs: Runs, jobs: int, seconds: float
) -> list[Verdict]:
    """The verdicts in the order of the mutants; a line of progress for each when it is known."""
    found = []
    with tempfile.TemporaryDirectory() as where, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(judge, mutant, root, runs, seconds, where) for mutant in mutants]
        try:
            for future in as_completed(futures):
                verdict = future.result()
                found.append(verdict)
                print(
                    f"[{len(found)}/{len(mutants)}] {verdict.seconds:6.1f} s  "
                    f"{verdict.outcome.value:<8}  {verdict.mutant.name}: {verdict.by}",
                    flush=True,
                )
        finally:  # whatever it ends with, the pool waits for nothing
            runs.stop()
            pool.shutdown(cancel_futures=True)
    return sorted(found, key=lambda verdict: mutants.index(verdict.mutant))


def pass_unbroken(
    mutants: Sequence[Mutant], root: pathlib.Path, runs: Runs, jobs: int
) -> tuple[bool, str]:
    """Whether all claiming tests pass while nothing is broken, and what they printed."""
    claims = sorted({claim for mutant in mutants for claim in mutant.tests.split()})
    with tempfile.TemporaryDirectory() as name:
        copy(root, pathlib.Path(name))
        workers = str(jobs if jobs > 1 else 0)
        status, output = runs.pytest(pathlib.Path(name), ["-n", workers, *claims])
    return status == 0, output


def table(verdicts: Sequence[Verdict]) -> str:
    """All verdicts in Markdown."""
    rows = [
        (v.mutant.name, v.mutant.file, v.outcome.value, v.by, f"{v.seconds:.0f}") for v in verdicts
    ]
    return markdown.table(("mutant", "file", "outcome", "by", "seconds"), rows)


def chosen(only: str, mutants: Sequence[Mutant]) -> list[Mutant]:
    """Those of these names, separated by commas; "" is all of them.

    Raises:
        ValueError: for a name that none has.
    """
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(wanted) - {mutant.name for mutant in mutants})
    if unknown:
        raise ValueError(f"--only={','.join(unknown)} names no mutant; --list shows all of them.")
    return [mutant for mutant in mutants if not wanted or mutant.name in wanted]


@contextlib.contextmanager
def signals_exit() -> Iterator[None]:
    """Inside, Ctrl-C and its like raise SystemExit once, so that all is cleared away."""

    def leave(number: int, frame: Any) -> None:
        for other in ENDINGS:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(
    words: Sequence[str] | None = None,
    root: pathlib.Path = ROOT,
    every: Sequence[Mutant] = MUTANTS,
) -> int:
    """The program on a working tree and its mutants; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one mutant")
    parser.add_argument("--unchecked", action="store_true", help="trust the tests to pass unbroken")
    parser.add_argument("--list", action="store_true", help="only show what there is")
    options = parser.parse_args(words)
    try:
        mutants = chosen(options.only, every)
        if wrong := [mistake for mutant in mutants for mistake in mistakes(mutant, root)]:
            raise ValueError("these are no mutants (tests/mutants_list.py):\n" + "\n".join(wrong))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{m.name:<36} {m.file:<34} {m.tests}" for m in mutants))
        return 0
    jobs, runs = max(options.jobs, 1), Runs()
    with signals_exit():
        if not options.unchecked:
            begin = time.monotonic()
            passed, output = pass_unbroken(mutants, root, runs, jobs)
            if not passed:
                print(f"{output}\nerror: these tests fail while nothing is broken.")
                return 2
            print(f"claiming tests pass unbroken, in {time.monotonic() - begin:.0f} s", flush=True)
        return report(judge_all(mutants, root, runs, jobs, options.timeout))


def report(verdicts: Sequence[Verdict]) -> int:
    """Prints the verdicts; returns the exit status."""
    for verdict in verdicts:
        if verdict.outcome is Outcome.ERROR:
            print(f"\n{verdict.mutant.name}: {verdict.by}\n{verdict.output[-3000:]}")
    print(f"\n{table(verdicts)}\n")
    counts = collections.Counter(verdict.outcome for verdict in verdicts)
    print(", ".join(f"{count} {outcome.value}" for outcome, count in counts.items()))
    if counts[Outcome.SURVIVED]:
        return 1
    return 2 if counts[Outcome.ERROR] else 0


if __name__ == "__main__":
    sys.exit(main())
