"""Builds configs and runs nothing, so that what is wrong with one is told before hours are spent.

    python -m experiments.check < runs.json

reads a JSON object, name of a run -> the arguments that choose its config, as experiments.main
takes them; `launch.sweep` asks it before its first run. Exit status: 0 when all can run, else 2.
"""

import json
import sys
from collections.abc import Sequence

from experiments import devices
from experiments.command_line import Parser, load_config, message, reported
from experiments.modes import checked
from experiments.train import check_cadence


@reported
def main(argv: Sequence[str]) -> int:
    """Checks the runs on standard input; all that is wrong is told, a line for each message."""
    Parser("experiments.check", __doc__).parse_args(argv)
    runs: dict[str, list[str]] = json.load(sys.stdin)
    wrong: dict[str, list[str]] = {}
    for name, arguments in runs.items():
        try:
            config = load_config(arguments)
            experiment = checked(config, config.train.finish_with)
            check_cadence(experiment.config.train, devices.make_mesh())
        except (ValueError, OSError, ImportError) as error:
            wrong.setdefault(message(error), []).append(name)
    if wrong:
        lines = [f"{', '.join(names)}: {what}" for what, names in wrong.items()]
        raise ValueError("nothing was started.\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
