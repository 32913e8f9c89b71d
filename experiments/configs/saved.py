"""The config of a finished or running training, as saved in its working directory.

    python -m experiments.main --mode=sample --workdir=runs/digits --config.sample.num_images=16

`main` chooses this config by itself where --mode is sample or evaluate and no --config is given.
"""

from ml_collections import ConfigDict

from experiments import runs


def get_config(workdir: str) -> ConfigDict:
    """The config in `workdir`.

    Raises:
        FileNotFoundError: if there is none, saying how a run is started.
    """
    return runs.read_config(workdir)
