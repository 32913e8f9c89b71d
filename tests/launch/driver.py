"""launch.sweep, carrying out `program` in place of experiments.main."""

import pathlib
import sys

from launch import plan, sweep

PROGRAM = str(pathlib.Path(__file__).parent / "program.py")


def command(self: plan.PlannedRun, folder: pathlib.Path) -> list[str]:
    return [PROGRAM, f"--workdir={folder}", f"--config.seed={self.seed}"]


if __name__ == "__main__":
    plan.PlannedRun.command = command  # type: ignore[method-assign]
    plan.check = lambda runs: None  # of configs that nothing here builds
    sweep.POLL_SECONDS = 0.1
    sys.exit(sweep.main(sys.argv[1:]))
