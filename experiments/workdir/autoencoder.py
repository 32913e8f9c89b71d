"""The autoencoder of a latent diffusion run: its copy in the run's own working directory.

The copy is a working directory that samples and codes as the autoencoder's own does, but holds no
state to train on from.
"""

from pathlib import Path
from typing import Any

from experiments.files.atomic import read_json, write_json

COPY = "autoencoder"  # the folder in the working directory
FACTS = "encoder.json"  # config.encoder as the run began with it; written last


def copy_of(workdir: Path) -> Path:
    """The folder of the copy, which need not be there."""
    return workdir / COPY


def copied(workdir: Path) -> dict[str, Any] | None:
    """config.encoder as the run began with it, where the copy is there and whole."""
    path = copy_of(workdir) / FACTS
    return read_json(path) if path.is_file() else None


def write_facts(workdir: Path, encoder: dict[str, Any]) -> None:
    """Marks the copy as whole."""
    write_json(copy_of(workdir) / FACTS, encoder)
