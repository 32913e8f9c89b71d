"""Breaks runs in every way that is known to happen, and counts how they end.

    python -m benchmarks.reliability kills --trials=50
    python -m benchmarks.reliability processes --trials=12
    python -m benchmarks.reliability damage
    python -m benchmarks.reliability disk
    python -m benchmarks.reliability soak --steps=50000

Each prints a line for a trial and at last a row for the table of docs/reliability.md. All are of
one small run of the digits; what is compared are the checksums of the last checkpoint, the bytes of
the samples and the values that were measured. `disk` mounts file systems, which needs root.
"""

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.files import markdown

ROOT = Path(__file__).parents[1]
STEPS = 400
SMALL = (
    *("--config=digits:eps_simple", "--config.model.channels=32", "--config.model.norm_groups=4"),
    *("--config.model.channel_multipliers=(1,)", "--config.model.attention_resolutions=()"),
    *("--config.model.dropout=0.1", "--config.train.batch_size=16", "--config.train.log_every=20"),
    *("--config.train.checkpoint_every=40", "--config.train.preview_every=200"),
    *("--config.train.preview_num_steps=4", "--config.sample.num_steps=100"),
    *("--config.sample.num_images=32", "--config.sample.batch_size=16"),
    *("--config.evaluate.metrics=bpd_fast", "--config.evaluate.num_images=64"),
    *("--config.evaluate.batch_size=32", "--config.evaluate.num_strata=20"),
)
AGAIN, DIVERGED = 75, 76


def command(workdir: Path, *more: str, steps: int = STEPS) -> list[str]:
    """The program on the small run."""
    program = [sys.executable, "-m", "experiments.main", f"--workdir={workdir}"]
    return [*program, *SMALL, f"--config.train.num_steps={steps}", *more]


def start(arguments: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A program with one CPU device in a process group of its own, which writes to `log`."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=environment | options.pop("env", {}),
            **options,
        )


def finish(arguments: Sequence[str], log: Path, **options: Any) -> int:
    """Runs it to its end; the exit status."""
    return start(arguments, log, **options).wait(1800)


def outcome(workdir: Path) -> dict[str, Any]:
    """What a finished run is compared by."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    meta = json.loads((workdir / f"checkpoints/{step}/meta/metadata").read_text())
    return {"step": step, "checksums": meta["checksums"], **measured(workdir)}


def measured(workdir: Path) -> dict[str, Any]:
    """Of that, what is no checkpoint."""
    results = json.loads((workdir / "results.json").read_text())
    samples = sorted((workdir / "samples").rglob("*.png"))
    return {
        "samples": [path.read_bytes() for path in samples],
        "values": results["bpd_fast"]["values"],
        "lines": len((workdir / "metrics.jsonl").read_text().splitlines()),
    }


def unlike(workdir: Path, expected: dict[str, Any]) -> str:
    """In what a finished run differs from one that was not disturbed; "" in nothing."""
    found = outcome(workdir)
    return ", ".join(name for name in expected if found[name] != expected[name])


def tail(log: Path, count: int = 1) -> str:
    """The last lines of what a program said."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-count:])[:200]


def phase(log: Path) -> str:
    """What a program was doing last."""
    text = log.read_text(errors="replace")
    for word, name in (
        ("done ", "the end"),
        ("sampled", "evaluation"),
        ("trained", "sampling"),
        (f"step     {STEPS}", "sampling or evaluation"),
        ("compiled ", "training"),
        ("compiling", "compilation"),
    ):
        if word in text:
            return name
    return "start-up"


def report(what: str, counts: "collections.Counter[str]") -> None:
    """A row for the table of docs/reliability.md."""
    found = "; ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    print(markdown.row([what, str(sum(counts.values())), found]), flush=True)


def kills(folder: Path, trials: int, seed: int) -> None:
    """kill -9 at a random moment of a whole run, start-up to evaluation; then the same command."""
    whole = folder / "undisturbed"
    begin = time.monotonic()
    assert finish(command(whole), folder / "whole.log") == 0, tail(folder / "whole.log", 5)
    seconds = time.monotonic() - begin
    expected, draw = outcome(whole), random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    when: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        workdir, log = folder / f"trial{trial}", folder / f"trial{trial}.log"
        process = start(command(workdir), log)
        time.sleep(draw.uniform(0.02, 1.0) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moment = phase(log)
        status = finish(command(workdir), log)
        other = unlike(workdir, expected) if status == 0 else "not finished"
        kind = f"status {status}, other: {other}" if other else "ends equal, bit for bit"
        print(f"{trial:3d} killed in {moment}: {kind}; {tail(log)}", flush=True)
        counts[kind] += 1
        when[moment] += 1
        shutil.rmtree(workdir, ignore_errors=True)
    moments = ", ".join(f"{count} in {name}" for name, count in when.most_common())
    report(f"kill -9 of a run at a random moment ({moments})", counts)


def together(workdir: Path, count: int, logs: Sequence[Path], *more: str) -> list[Any]:
    """The processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(command(workdir, f"--config.distributed={address},{count},{i}", *more), logs[i])
        for i in range(count)
    ]


def processes(folder: Path, trials: int, seed: int) -> None:
    """One of two processes dies or freezes; then the same command in two, or one process alone."""
    logs, draw = [folder / "0.log", folder / "1.log"], random.Random(seed)
    whole = folder / "undisturbed"
    assert [p.wait() for p in together(whole, 2, logs)] == [0, 0], tail(logs[0], 5)
    expected = outcome(whole)
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        workdir = folder / f"trial{trial}"
        victim, number = trial % 2, (signal.SIGKILL, signal.SIGSTOP)[trial // 2 % 2]
        logs = [folder / f"trial{trial}.{i}.log" for i in range(2)]
        both = together(workdir, 2, logs)
        while "compiled " not in logs[0].read_text():
            time.sleep(0.5)
        time.sleep(draw.uniform(0.0, 12.0))
        begin = time.monotonic()
        os.kill(both[victim].pid, number)
        status = both[1 - victim].wait(120)
        seconds = time.monotonic() - begin
        os.kill(both[victim].pid, signal.SIGCONT)
        os.killpg(both[victim].pid, signal.SIGKILL)
        both[victim].wait()
        said = tail(logs[1 - victim])
        if trial % 3 == 2:  # with another process count after it
            last = finish(command(workdir), logs[0])
            same = last == 0 and outcome(workdir)["step"] == STEPS
            how = "goes on in one process"
        else:
            last = max(process.wait() for process in together(workdir, 2, logs))
            same = last == 0 and outcome(workdir) == expected
            how = "ends equal in two, bit for bit"
        kind = f"survivor ends with {status}, {how if same else f'then {last} and other'}"
        what = f"{number.name} to process {victim}"
        print(f"{trial:3d} {what}: {kind} after {seconds:.1f} s; {said}", flush=True)
        counts[kind] += 1
        shutil.rmtree(workdir, ignore_errors=True)
    report("one of two processes killed or frozen, the coordinator as often", counts)


def damages(path: Path, other: Path) -> dict[str, Callable[[], Any]]:
    """Ways in which a file may be damaged, `other` being the same file of another run."""
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    found: dict[str, Callable[[], Any]] = {
        "truncated": lambda: path.write_bytes(content[:middle]),
        "emptied": lambda: path.write_bytes(b""),
        "flipped": lambda: path.write_bytes(flipped),
        "removed": path.unlink,
    }
    if other.is_file() and other.read_bytes() != content:
        found["replaced by another run's"] = lambda: path.write_bytes(other.read_bytes())
    return found if content else {"removed": path.unlink}


def damage(folder: Path) -> None:
    """Every file of the newest checkpoint in turn, in every way; read by `Checkpoints.newest`."""
    import jax

    from experiments import console, devices
    from experiments.build import build
    from experiments.command_line import load_config
    from experiments.state import load_ema, load_raw
    from experiments.workdir.checkpoint import Checkpoints, sums

    console.log = lambda text, wrap=True: said.append(text)
    said: list[str] = []
    for name, seed in (("run", 0), ("other", 1)):
        arguments = command(folder / name, f"--config.seed={seed}", steps=80)
        assert finish([*arguments, "--config.train.finish_with=()"], folder / "log") == 0
    experiment = build(load_config([*SMALL, "--config.train.num_steps=80"]))
    mesh, counts = devices.make_mesh(), collections.Counter[str]()

    def read(workdir: Path) -> dict[int, Any]:
        with Checkpoints(workdir) as checkpoints:

            def one(step: int) -> Any:
                params = load_ema(experiment, workdir, mesh, step).params
                return sums((params, load_raw(experiment, workdir, step, mesh)))

            step, found = checkpoints.newest(one)
        return {step: found}

    sound = read(folder / "run")
    last, foreign = folder / "run/checkpoints/80", folder / "other/checkpoints/80"
    for path in sorted(p for p in last.rglob("*") if p.is_file()):
        relative = path.relative_to(last)
        for how, spoil in damages(path, foreign / relative).items():
            work = Path(tempfile.mkdtemp(dir=folder)) / "run"
            shutil.copytree(folder / "run", work)
            keep = path.read_bytes()
            spoil()
            said.clear()
            try:
                found = read(folder / "run")
                if found == sound:
                    kind = "harmless, the same numbers"
                elif list(found) == [40] and said:
                    kind = "named, and the sound step before is used"
                else:
                    kind = "SILENT"
            except Exception as error:
                kind = f"error: {str(error)[:60]}"
            path.write_bytes(keep)
            print(f"{relative} {how}: {kind}", flush=True)
            counts[kind] += 1
            shutil.rmtree(work.parent)
    report(f"every file of a checkpoint damaged (jax {jax.__version__})", counts)


@contextmanager
def small_disk(folder: Path, mib: float) -> Iterator[Path]:
    """A file system of that many MiB."""
    folder.mkdir(exist_ok=True)
    size = f"size={int(mib * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def in_full_disk(
    small: Path, log: Path, expected: dict[str, Any], **options: Any
) -> tuple[str, str]:
    """The run of `small` / run until it ends there, then again with room: how, and what it said."""
    status = finish(command(small / "run"), log, **options)
    moment, said, text = phase(log), tail(log), log.read_text()
    tidy = "one message" if "Traceback" not in text and status in (0, 2, AGAIN) else "A TRACEBACK"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    last = status if status == 0 else finish(command(small / "run"), log, **options)
    other = unlike(small / "run", expected) if last == 0 else "not finished"
    then = f"status {last} and OTHER: {other}" if other else "equal, bit for bit"
    return f"status {status}, {tidy}, then {then}", f"full in {moment}: {said}"


def disk(folder: Path) -> None:
    """A disk that fills at every point of a run, and the same command when there is room again."""
    whole = folder / "undisturbed"
    assert finish(command(whole), folder / "whole.log") == 0
    expected = outcome(whole)
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) / 2**20
    counts: collections.Counter[str] = collections.Counter()

    def count(what: str, kind: str, said: str) -> None:
        print(f"{what}: {kind}; {said}", flush=True)
        counts[kind] += 1

    for tenths in (0, 2, 4, 6, 8, 9, 10, 11):
        log = folder / f"{tenths}.log"
        with small_disk(folder / "small", max(0.05, used * tenths / 10)) as small:
            count(f"{tenths / 10} of what a run takes", *in_full_disk(small, log, expected))
    for kib in (0, 4, 8, 16, 32, 64, 128):  # left when training is done
        log = folder / f"after{kib}.log"
        with small_disk(folder / "small", 64) as small:
            shutil.copytree(whole, small / "run")
            for name in ("samples", "evaluation"):
                shutil.rmtree(small / "run" / name, ignore_errors=True)
            results = small / "run" / "results.json"
            kept = {"train": json.loads(results.read_text())["train"]}
            results.write_text(json.dumps(kept))
            size = sum(-(-p.stat().st_size // 4096) * 4 for p in small.rglob("*") if p.is_file())
            resized = f"remount,size={size + kib}k"
            subprocess.run(["mount", "-o", resized, str(small)], check=True)
            count(f"{kib} KiB left after training", *in_full_disk(small, log, expected))
    for name, variable in (("data", "TFDS_DATA_DIR"), ("cache", "DDPM_CACHE")):
        for kib in (16, 64, 256):
            log, other = folder / f"{name}{kib}.log", folder / name
            with small_disk(folder / "small", 64) as small, small_disk(other, kib / 1024) as where:
                env = {variable: str(where)}
                status = finish(command(small / "run"), log, env=env)
                tidy = "one message" if "Traceback" not in log.read_text() else "A TRACEBACK"
                first, said = f"status {status}, {tidy}", tail(log)
                subprocess.run(["mount", "-o", "remount,size=64m", str(where)], check=True)
                last = status and finish(command(small / "run"), log, env=env)
                same = last == 0 and outcome(small / "run") == expected
            then = "equal, bit for bit" if same else f"status {last} and OTHER"
            count(f"{kib} KiB for the {name}", f"{first}, then {then}", said)
    report("the disk fills, then there is room again", counts)


def memory(pid: int) -> float:
    """MiB of a process that are in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def soak(folder: Path, steps: int) -> None:
    """One long training: its memory and its speed by tenths."""
    workdir, log = folder / "soak", folder / "soak.log"
    rare = ("--config.train.checkpoint_every=1000", "--config.train.preview_every=5000")
    more = (*rare, "--config.train.log_every=100", "--config.train.finish_with=()")
    process = start(command(workdir, *more, steps=steps), log)
    seen: list[tuple[int, float, float]] = []
    while process.poll() is None:
        time.sleep(2.0)
        lines = Path(workdir / "metrics.jsonl")
        text = lines.read_text().splitlines() if lines.is_file() else []
        step = json.loads(text[-1])["step"] if text else 0
        if step >= (len(seen) + 1) * steps // 10 or (not seen and step >= steps // 50):
            seen.append((step, memory(process.pid), time.monotonic()))
            print(f"step {step:,}: {seen[-1][1]:.1f} MiB", flush=True)
    speeds = [
        (after[0] - before[0]) / (after[2] - before[2])
        for before, after in itertools.pairwise(seen)
    ]
    growth = (seen[-1][1] - seen[2][1]) / (seen[-1][0] - seen[2][0]) * 1000
    resident = f"memory {seen[0][1]:.0f} MiB at first, {seen[-1][1]:.0f} MiB at last"
    by_tenths = f"steps/s by tenths {', '.join(f'{speed:.0f}' for speed in speeds)}"
    print(markdown.row([f"{steps:,} steps", f"{resident}, {growth:+.2f} in 1,000", by_tenths]))


def main(argv: Sequence[str]) -> int:
    """Runs one kind of trial in a folder of its own."""
    parser = argparse.ArgumentParser("benchmarks.reliability", description=__doc__)
    parser.add_argument("what", choices=["kills", "processes", "damage", "disk", "soak"])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix=f"reliability_{options.what}_"))
    print(f"in {folder}", flush=True)
    if options.what == "kills":
        kills(folder, options.trials, options.seed)
    elif options.what == "processes":
        processes(folder, options.trials, options.seed)
    elif options.what == "soak":
        soak(folder, options.steps)
    else:
        {"damage": damage, "disk": disk}[options.what](folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
