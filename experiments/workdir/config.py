"""config.json of a working directory: its one reader and its one writer."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.files.atomic import read_json, write_json
from experiments.workdir.protocols import MODEL, PLACES, flat, meaning, renewed
from experiments.workdir.protocols import fields as fields_of

NONE = "absent"  # what an error calls a field that is not there


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs use, and its nulls as their placeholders."""
    if value is None:
        return config_dict.placeholder(str)  # so that a string can be put in its place
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def config_to_dict(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(config.to_json_best_effort())


def config_from_dict(content: dict[str, Any]) -> ConfigDict:
    """The inverse of `config_to_dict`, for a config of an older version of this program too."""
    return ConfigDict(_tuples(renewed(content)))


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Saves the resolved config in the working directory."""
    write_json(workdir / "config.json", config_to_dict(config))


def read_config(workdir: str | Path) -> ConfigDict:
    """The config that `write_config` saved.

    Raises:
        FileNotFoundError: if there is none, saying how a run is started.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} holds no run: {path} does not exist. Name the working directory of a run. "
            "Train first, such as python -m experiments.main "
            f"--config=experiments/configs/digits.py --workdir={shlex.quote(str(workdir))}"
        )
    return config_from_dict(read_json(path))


def check_same(
    saved: dict[str, Any],
    config: ConfigDict,
    fields: Sequence[str],
    workdir: str | Path,
    more: str = "",
) -> None:
    """Refuses to go on with a run under a config that describes another run.

    Args:
        saved: the config in the checkpoint, as `config_to_dict` gives it.
        config: the config in force.
        fields: paths of those that must agree.
        workdir: named in the error.
        more: what else can be done, where the network is the same.

    Raises:
        ValueError: naming the fields that differ, and what can be done.
    """
    then, now = renewed(saved), config_to_dict(config)
    _refuse(fields_of(then, fields), fields_of(now, fields), workdir, more)


def check_same_model(saved: dict[str, Any], config: ConfigDict, workdir: str | Path) -> None:
    """Refuses to use a checkpoint's parameters under a config where they mean something else.

    What does not change their meaning may differ: `protocols.meaning`.

    Args, Raises: as for `check_same`.
    """
    then, now = renewed(saved), config_to_dict(config)
    before, after = (
        {name: meaning(name, value) for name, value in fields_of(config, MODEL).items()}
        for config in (then, now)
    )
    _refuse(before, after, workdir)


def from_another(workdir: str | Path) -> str:
    """How a run begins with the weights that another run has."""
    return (
        "To train on from its weights under this config: "
        f"--from={shlex.quote(str(workdir))} and another --workdir."
    )


def changed(
    saved: dict[str, Any], config: ConfigDict, fields: Sequence[str]
) -> dict[str, list[Any]]:
    """The leaves that differ, [then, now] by name.

    Args: as for `check_same`.
    """
    then, now = renewed(saved), config_to_dict(config)
    return _unlike(fields_of(then, fields), fields_of(now, fields))


def _unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    before, after = flat(then), flat(now)
    pairs = {f: [before.get(f, NONE), after.get(f, NONE)] for f in {**before, **after}}
    return {f: pair for f, pair in pairs.items() if f not in PLACES and pair[0] != pair[1]}


def _refuse(
    then: Mapping[str, Any], now: Mapping[str, Any], workdir: str | Path, more: str = ""
) -> None:
    """Raises ValueError where the values of some field differ, naming each leaf that does.

    Args:
        more: what else can be done, where the network is the same.
    """
    if unlike := _unlike(then, now):
        lines = [f"  {f}: {before} then, {after} now" for f, (before, after) in unlike.items()]
        raise ValueError(
            f"{workdir} holds a run under another config:\n" + "\n".join(lines) + "\n"
            "Choose another --workdir, or the config that the run was started with."
            + f" {more}"
            * (bool(more) and not any(f.startswith("model.") for f in unlike))
        )
