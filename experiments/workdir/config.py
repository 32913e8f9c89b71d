"""config.json of a working directory: its one reader and its one writer."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from diffusion.variances import VARIANCES
from experiments.files.atomic import read_json, write_json
from experiments.workdir.protocols import MODEL, renewed


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
            f"{workdir} holds no run: {path} does not exist. Train first (python -m "
            f"experiments.main --config=experiments/configs/digits.py --workdir={workdir}), or "
            "name the working directory of a run in --workdir."
        )
    return config_from_dict(read_json(path))


def check_same(
    saved: dict[str, Any], config: ConfigDict, fields: tuple[str, ...], workdir: str | Path
) -> None:
    """Refuses to use a run's checkpoint under a config that describes another run.

    Args:
        saved: the config in the checkpoint, as `config_to_dict` gives it.
        config: the config in force.
        fields: which must agree, MODEL or TRAINING. Within MODEL one fixed variance may replace
            another: the network has no part in it.
        workdir: named in the error.

    Raises:
        ValueError: naming the fields that differ, and what can be done.
    """

    def field(source: dict[str, Any], path: str) -> Any:
        for part in path.split("."):
            source = source[part]
        return source

    saved, now = renewed(saved), config_to_dict(config)
    differ = [path for path in fields if field(saved, path) != field(now, path)]
    if fields == MODEL and "variance" in differ:
        learned = [VARIANCES[source["variance"]["name"]].extra_channels for source in (saved, now)]
        if not any(learned):
            differ.remove("variance")
    if differ:
        lines = [f"  {path}: {field(saved, path)} then, {field(now, path)} now" for path in differ]
        raise ValueError(
            f"{workdir} holds a run under another config:\n" + "\n".join(lines) + "\n"
            "Choose another --workdir, or the config that the run was started with."
        )
