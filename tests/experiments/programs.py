"""Programs of this repository run in this process, and the commands that their messages give."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from types import MappingProxyType
from unittest import mock

from absl.testing import flagsaver

from experiments import command_line, main, peers, prepare
from launch import report

COMMAND = re.compile(r"python -m ([\w.]+)(.*)")


def commands(text: str) -> list[list[str]]:
    """Every `python -m MODULE ...` of a text, as a shell takes it apart: [MODULE, *arguments]."""
    return [[module, *shlex.split(rest)] for module, rest in COMMAND.findall(text)]


def run_main(*arguments: str) -> int:
    """`python -m experiments.main`; returns its exit status."""
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", ["main"]),
        mock.patch.object(peers, "end_with", sys.exit),
    ):
        try:
            rest = command_line.parse(["main", "--compilation_cache=off", *arguments])
            return main.main(rest)
        except SystemExit as ended:
            return int(ended.code or 0)


PROGRAMS: MappingProxyType[str, Callable[..., int]] = MappingProxyType(
    {
        "experiments.main": run_main,
        "experiments.prepare": lambda *arguments: prepare.main(arguments),
        "launch.report": lambda *arguments: report.main(arguments),
    }
)


def run(command: Sequence[str]) -> int:
    """Runs one of `commands` to its end, and returns its exit status."""
    module, *arguments = command
    return PROGRAMS[module](*arguments)
