"""CIFAR-10, the paper's main run: 35.7 million parameters, 800,000 steps.

    python -m experiments.prepare --dataset=cifar10 --from=cifar-10-binary.tar.gz
    python -m experiments.main --config=experiments/configs/cifar10.py --workdir=runs/cifar10

Paper: 10.6 hours on a TPU v3-8; IS 9.46 +- 0.11, FID 3.17 (train), at most 3.75 bits/dim on test
(3.72 on train). Not measured here: on 2 CPU cores (AMD EPYC) the full-width step runs at some 2
images/s, which is for trying the set-up only.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, base


def get_config(ablation: str = "") -> ConfigDict:
    """The base config is this run."""
    config = base.get_config()
    config.data.name = "cifar10"
    return ablations.apply(config, ablation)
