"""Where a number comes from: config, commit, versions, hardware."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.devices import REPORTED
from experiments.workdir.config import config_to_dict

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy")


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
