"""LSUN Cat at 256x256, from a folder of exported images.

    CONFIG=experiments/configs/lsun_cat.py
    python -m experiments.main --config=$CONFIG --config.data.path=IMAGES --workdir=runs/lsun_cat

Paper: FID 19.75 (Table 3) after 1.8 million steps. Not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, images256


def get_config(ablation: str = "") -> ConfigDict:
    """The 256x256 network for 1.8 million steps."""
    config = images256.get_config()
    config.data = ConfigDict(dict(name="image_folder", path="", image_size=256, test_fraction=0.0))
    config.train.num_steps = 1_800_000
    return ablations.apply(config, ablation)
