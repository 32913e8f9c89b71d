"""CelebA-HQ at 256x256, from a prepared folder of tensorflow-datasets.

    python -m experiments.prepare --dataset=celeb_a_hq/256 --from=FOLDER_OF_IMAGES
    python -m experiments.main --config=experiments/configs/celebahq256.py --workdir=runs/celebahq

Paper: 500,000 steps; samples in Figure 3 and no FID. Not measured here.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, images256


def get_config(ablation: str = "") -> ConfigDict:
    """The 256x256 network for half a million steps."""
    config = images256.get_config()
    config.data.name = "celeb_a_hq/256"
    config.data.test_fraction = 0.0  # held out from the end of the folder
    config.train.num_steps = 500_000
    return ablations.apply(config, ablation)
