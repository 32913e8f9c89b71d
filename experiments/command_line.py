"""The command line: flags in, errors and times out as people read them."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, ParamSpec

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.configs import ablations, by_size, ranges
from experiments.workdir.outcome import USER_ERROR

Arguments = ParamSpec("Arguments")
SAVED = Path(__file__).parent / "configs" / "saved.py"


class ListAblations(flags.BooleanFlag):
    """--list_ablations, which prints and ends the program before required flags are asked for."""

    def __init__(self) -> None:
        super().__init__("list_ablations", False, "Print the ablations and their groups.")

    def parse(self, argument: str | bool) -> None:
        super().parse(argument)
        if self.value:
            print(ablations.listing(), end="")
            sys.exit(0)


def fail(error: BaseException | str) -> int:
    """Prints the error where it began, for one that the user can mend; returns the exit status."""
    print(f"error: {error}\n(--verbosity=1 shows where it was raised)", file=sys.stderr)
    return USER_ERROR


class Parser(argparse.ArgumentParser):
    """The options of a program without a config; what is wrong with them is a ValueError."""

    def __init__(self, module: str, description: str | None) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        prog = f"python -m {module}"
        super().__init__(prog, None, description, formatter_class=kind, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists what there is.")


def reported(program: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """A program whose ValueErrors and OSErrors, which its user can mend, end in one line."""

    @functools.wraps(program)
    def run(*arguments: Arguments.args, **more: Arguments.kwargs) -> int:
        try:
            return program(*arguments, **more)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR

    return run


def verbose(argv: list[str]) -> bool:
    """Whether the command line asks for tracebacks, before it can be parsed."""
    return "--verbosity=1" in argv


def message(error: BaseException) -> str:
    """What to tell the user: the outermost error of the chain that is no traceback in disguise."""
    cause: BaseException | None = error
    while cause is not None and "Traceback" in str(cause):
        error, cause = cause, cause.__cause__ or cause.__context__
    error = cause or error
    text = " ".join(map(str, error.args))
    if isinstance(error, AttributeError | KeyError):  # ml_collections quotes its own message
        text = text.strip("\"'").replace("\\'", "'").replace("\\n", ". ").replace("\n", ". ")
        return f"the config has no field {text}"
    return text.removeprefix(
        "Configuration is not available because of an earlier failure to load: "
    )


def with_saved_config(argv: list[str]) -> list[str]:
    """argv, with the working directory's own config where a mode other than train names none."""
    values = {}
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if word.startswith("-"):
            name, given, value = word.lstrip("-").partition("=")
            values[name] = value if given else following
    if values.get("mode", "train") == "train" or "config" in values or "workdir" not in values:
        return argv
    return [argv[0], f"--config={SAVED}:{values['workdir']}", *argv[1:]]


def load_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that `experiments.main` would use, for a program that plans its runs.

    Args:
        arguments: --config=... and --config.FIELD=..., as it takes them.

    Raises:
        ValueError: if it would refuse the file, the ablation, a field or a value.
    """
    argv = ["main", *arguments]
    holder = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=argv)
    try:
        holder(argv)
        config: ConfigDict = holder["config"].value
        ranges.check(
            by_size.fill(config)
        )  # also a config that could not be loaded says so only when used
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        raise ValueError(message(error)) from error
    return config


def parse(argv: list[str]) -> list[str]:
    """absl's parser for `app.run`: returns what is no flag, or ends the program with a message."""
    try:
        rest = flags.FLAGS(with_saved_config(argv))
        config = flags.FLAGS.config
        if config is not None:
            config.to_dict()  # a config that could not be loaded says so only when used
        return rest
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        if verbose(argv):
            raise
        sys.exit(fail(message(error)))
