"""In place of experiments.main: "trains" by counting in a file, and ends as it is told.

It writes what the sweep reads (metrics.jsonl, results.json) and keeps to the same exit statuses, so
that tests of the launcher need neither a network nor seconds. BEHAVIOUR maps seeds to what happens:

    finish        counts to the end
    diverge       ends with 76 after two steps
    wrong         ends with 2 at once, as for an error in the config
    crash:N       ends with 1 at the third step, N times in all
"""

import json
import os
import pathlib
import signal
import sys
import time

STEPS = 12
received: list[int] = []


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    folder = pathlib.Path(options["workdir"])
    behaviour, _, count = json.loads(os.environ["BEHAVIOUR"])[options["config.seed"]].partition(":")
    starts = folder / "starts.txt"
    with starts.open("a") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
    attempt = len(starts.read_text().splitlines())
    if behaviour == "wrong":
        print("error: there is no such thing\n(--verbosity=1 shows where it was raised)")
        return 2
    checkpoint = folder / "step.txt"
    step = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    metrics = (folder / "metrics.jsonl").open("a", buffering=1)
    while step < STEPS:
        step += 1
        with (folder / "done.txt").open("a") as file:
            file.write(f"{step}\n")
        line = {"step": step, "loss": 1.0 / step, "eta_seconds": float(STEPS - step)}
        metrics.write(json.dumps(line) + "\n")
        time.sleep(float(os.environ.get("STEP_SECONDS", "0.02")))
        if behaviour == "diverge" and step == 2:
            section = {"state": "diverged", "step": 2, "reason": "the loss is nan", "metrics": {}}
            (folder / "results.json").write_text(json.dumps({"train": section}))
            return 76
        if behaviour == "crash" and step == 3 and attempt <= int(count):
            raise RuntimeError("something broke")
        checkpoint.write_text(str(step))
        if received:
            return 75
    with starts.open("a") as file:
        file.write(f"{time.time()} end\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
