"""The command line: flags in, errors and times out as people read them."""

import argparse
import ast
import errno
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import console
from experiments.configs import ablations, by_size, ranges
from experiments.data.captions import split_prompts
from experiments.lookup import suggestion
from experiments.workdir.outcome import EXIT_STATUS, USER_ERROR, Outcome

Arguments = ParamSpec("Arguments")
# What absl says of a text that is no number or no boolean.
# Of sections that a config of the other kind has.
PROCESSES = {
    "path": ": this config is of a chain (config.schedule). Begin with an ablation in continuous "
    "time, such as experiments/configs/digits.py:flow",
    "schedule": ": this config is of a path (config.path). Begin with one of a chain, such as "
    "experiments/configs/digits.py:eps_simple",
}
UNREAD = re.compile(
    r"flag --config\.([\w.]+)=(.*): (?:invalid literal|could not convert|\('Non-boolean)", re.DOTALL
)
WHOLE = re.compile(r"[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,2}")
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
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def check_writable(folder: Path, make: bool) -> None:
    """Refuses a working directory in which nothing can be written, before anything is computed.

    Args:
        folder: the working directory.
        make: whether it is made where it is not there.

    Raises:
        ValueError: saying what is in the way.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"--workdir={folder} has a name that is not UTF-8, which checkpoints cannot have. Name "
            "another folder."
        ) from error
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise ValueError(
            f"--workdir={folder} cannot be written to ({error.strerror}). Name a folder of yours, "
            "or one that is not there yet."
        ) from error


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that no space is left."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail_of_full_disk(error: BaseException) -> int:
    """Says what to do about it; returns the status of what is to be started again."""
    fail(
        f"{error}. What was saved before is whole. Free some room (config.train.keep_checkpoints "
        "says how many checkpoints stay) and start the same command again."
    )
    return EXIT_STATUS[Outcome.STOPPED]


class Parser(argparse.ArgumentParser):
    """The options of a program without a config; what is wrong with them is a ValueError."""

    def __init__(self, module: str, description: str | None) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        prog = f"python -m {module}"
        super().__init__(prog, None, description, formatter_class=kind, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists what there is.")


def reported(program: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """A program whose ValueErrors and OSErrors, which its user can mend, end in one line.

    So does Ctrl-C, with the status of what is to be started again.
    """

    @functools.wraps(program)
    def run(*arguments: Arguments.args, **more: Arguments.kwargs) -> int:
        console.steady_output()
        try:
            return program(*arguments, **more)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("stopped   the same command begins again", file=sys.stderr)
            return EXIT_STATUS[Outcome.STOPPED]

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
        return f"the config has no field {text}{PROCESSES.get(text.split('.')[0].split()[0], '')}"
    if found := UNREAD.match(text):
        field, value = found.groups()
        rule = ranges.FIELDS.get(field, ranges.Finite())
        return f"config.{field} = {value} {rule.refusal(value)}"
    return text.removeprefix(
        "Configuration is not available because of an earlier failure to load: "
    )


def _values(argv: Sequence[str]) -> dict[str, str]:
    """The options on a command line, the last of each, as they are written."""
    values = {}
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if word.startswith("-"):
            name, given, value = word.lstrip("-").partition("=")
            values[name] = value if given else following
    return values


def with_saved_config(argv: list[str]) -> list[str]:
    """argv, with the working directory's own config where a mode other than train names none."""
    values = _values(argv)
    if values.get("mode", "train") == "train" or "config" in values or "workdir" not in values:
        return argv
    return [argv[0], f"--config={SAVED}:{values['workdir']}", *argv[1:]]


def with_a_sample_for_each_prompt(argv: list[str]) -> list[str]:
    """argv with as many samples as it names prompts, where it says nothing of their number."""
    values = _values(argv)
    prompts = split_prompts(values.get("config.sample.prompts", ""))
    told = {"seeds", "config.sample.num_images"} & values.keys()
    if not prompts or prompts[0].startswith("@") or told:
        return argv
    return [*argv, f"--config.sample.num_images={len(prompts)}"]


def as_meant(argv: Sequence[str]) -> list[str]:
    """argv with a config's short name as its file, 1e3 for a field of the config as 1000, and a
    choice, such as sampler=ddim, as its name.

    Raises:
        ValueError: for a config that is not there, with what it may have been meant to be, and for
            a field beside a choice that replaces it.
    """
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        name, given, value = word.partition("=")
        if not given and before.lstrip("-") == "config":
            word = _config_file(word)
        elif given and name.lstrip("-") == "config":
            word = f"{name}={_config_file(value)}"
        elif given and name.lstrip("-").startswith("config.") and WHOLE.fullmatch(value):
            word = f"{name}={int(float(value))}"
        elif given and f"{name.lstrip('-').removeprefix('config.')}.name" in ranges.FIELDS:
            word = word if value.lstrip().startswith("{") else f"{name}.name={value}"
        words.append(word)
    _check_whole_choices(_values(["", *words]))
    return words


def _check_whole_choices(values: Mapping[str, str]) -> None:
    """Refuses a field of a choice that is also replaced as a whole, which would take it away."""
    for name, value in values.items():
        choice, dot, last = name.rpartition(".")
        lost = [
            f"--{other}" for other in values if other.startswith(f"{choice}.") and other != name
        ]
        if last == "name" and dot and "(" in value and lost:
            raise ValueError(
                f"--{choice}={value} replaces the whole choice, and {', '.join(lost)} with it: "
                "write all of its options in the parentheses."
            )


def _config_file(value: str) -> str:
    """The file, and what follows it after a colon, of `digits:cosine` or of a path."""
    name, colon, ablation = value.partition(":")
    folder = SAVED.parent
    if "/" not in name and not name.endswith(".py") and (folder / f"{name}.py").is_file():
        return f"{folder / name}.py{colon}{ablation}"
    if not name or Path(name).is_file():
        return value
    known = [p.stem for p in folder.glob("*.py") if "def get_config(ablation" in p.read_text()]
    raise ValueError(
        f"--config={value}: there is no file {name}. {suggestion(Path(name).stem, sorted(known))}"
    )


def spelled_out(config: ConfigDict, path: str = "config") -> ConfigDict:
    """`config` with each name such as `ddim(eta=0.5)` as the choice {name, **options} that it is.

    The whole choice is replaced, so that no option of the one before it stays.

    Raises:
        ValueError: for what is not written like that.
    """
    for key in list(config):
        node = config[key]
        if not isinstance(node, ConfigDict):
            continue
        name = node.get("name")
        if isinstance(name, str) and "(" in name:
            with config.unlocked():
                config[key] = ConfigDict(_called(name, f"{path}.{key}"))
        else:
            spelled_out(node, f"{path}.{key}")
    return config


def _called(text: str, where: str) -> dict[str, Any]:
    """{name, **options} of `name(option=value, ...)`, values as Python writes them."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{where}.name = {text!r} is not understood: write a name, or name(option=value, ...), "
            "such as ddim(eta=0.5) or vae(workdir='runs/vae'), texts in quotes."
        ) from error
    return {"name": call.func.id, **options}


def load_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that `experiments.main` would use, for a program that plans its runs.

    Args:
        arguments: --config=... and --config.FIELD=..., as it takes them.

    Raises:
        ValueError: if it would refuse the file, the ablation, a field or a value.
    """
    argv = ["main", *as_meant(arguments)]
    holder = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=argv)
    try:
        holder(argv)
        config: ConfigDict = by_size.fill(spelled_out(holder["config"].value))
        ranges.check(config)  # which a config that could not be loaded fails too
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        raise ValueError(message(error)) from error
    return config


def parse(argv: list[str]) -> list[str]:
    """absl's parser for `app.run`: returns what is no flag, or ends the program with a message.

    Without arguments it ends with how the program is used, and status 2; with --help with all of
    its flags too, and status 0.
    """
    about = str(sys.modules["__main__"].__doc__ or "").strip()
    if len(argv) == 1:
        print(f"{about}\n\n--help lists all flags.", file=sys.stderr)
        sys.exit(USER_ERROR)
    if {word.lstrip("-") for word in argv[1:]} & {"help", "h", "?", "helpshort", "helpfull"}:
        print(f"{about}\n\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        meant = with_a_sample_for_each_prompt([argv[0], *as_meant(argv[1:])])
        sys.argv = with_saved_config(meant)  # ml_collections reads it too
        rest = flags.FLAGS(sys.argv)
        config = flags.FLAGS.config
        if config is not None:
            config.to_dict()  # a config that could not be loaded says so only when used
        return rest
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        if verbose(argv):
            raise
        sys.exit(fail(message(error)))
