"""A working directory: its config, its results, and where they came from."""

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, config_dict

from diffusion.variances import VARIANCES
from experiments.configs.files import read_json, write_json
from experiments.configs.protocols import MODEL, renewed
from experiments.devices import REPORTED

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy")


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs use, and its nulls as their placeholders."""
    if value is None:
        return config_dict.placeholder(str)  # so that a string can be put in its place
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check_new(folder: Path, option: str) -> None:
    """Refuses a folder that holds something, and a path that is no folder.

    Raises:
        ValueError: naming the option that chose it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty. Choose another {option}.")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which becomes it at the end; an interruption leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _git_commit() -> str:
    """The commit of this code, marked where files differ from it; "unknown" outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What a number needs beside it: config, seed, commit, versions, hardware and date."""
    devices = jax.devices()
    return {
        "config": config_to_dict(config),
        "seed": config.seed,
        "commit": _git_commit(),
        "precision": {
            "training and sampling": config.precision,
            "likelihoods and distances": REPORTED,
        },
        "versions": {name: metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "hardware": {
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "processes": jax.process_count(),
            "host": f"{_processor()}, {os.cpu_count()} cores",
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read_results(workdir: Path) -> dict[str, Any]:
    """The sections of the run's results.json; empty where nothing was recorded."""
    path = workdir / "results.json"
    return read_json(path) if path.is_file() else {}


def write_results(workdir: Path, section: str, results: dict[str, Any], config: ConfigDict) -> None:
    """Adds or replaces one section (train, sample, evaluate, convert) of the run's results.json."""
    section_with_origin = results | {"provenance": provenance(config)}
    write_json(workdir / "results.json", read_results(workdir) | {section: section_with_origin})
