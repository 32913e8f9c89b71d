"""LSUN Bedroom at 256x256, from a folder of exported images.

    CONFIG=experiments/configs/lsun_bedroom.py
    python -m experiments.main --config=$CONFIG --config.data.path=IMAGES --workdir=runs/bedroom

Paper: FID 6.36 (Table 3) after 2.4 million steps; 4.90 with the large
network (the ablation `large`) after 1.15 million. Not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, images256


def get_config(ablation: str = "") -> ConfigDict:
    """The 256x256 network for 2.4 million steps."""
    config = images256.get_config()
    config.data = ConfigDict(dict(name="image_folder", path="", image_size=256, test_fraction=0.0))
    config.train.num_steps = 2_400_000
    config.train.flip = False  # as the paper says; the original's script flips
    return ablations.apply(config, ablation)
