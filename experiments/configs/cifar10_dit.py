"""CIFAR-10 with a DiT for the U-Net; all else as in cifar10.py.

    python -m experiments.prepare --dataset=cifar10 --from=cifar-10-binary.tar.gz
    python -m experiments.main --config=experiments/configs/cifar10_dit.py --workdir=runs/cifar_dit

Not measured, and no number of a paper is of this model: Peebles and Xie train theirs on ImageNet's
latents.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, cifar10


def get_config(ablation: str = "") -> ConfigDict:
    """DiT-S/2 (Peebles and Xie 2022, Table 1) on pixels: 256 tokens, 32.5 million parameters."""
    config = cifar10.get_config()
    config.model = ConfigDict(
        dict(
            name="dit",
            patch_size=2,
            hidden_size=384,
            depth=12,
            num_heads=6,
            mlp_ratio=4.0,
            dropout=0.1,  # as for the U-Net; the paper's DiTs have none
            fourier_features=(),
            class_conditional=False,
            label_dropout=0.0,
            remat=False,
            dtype="float32",
        )
    )
    return ablations.apply(config, ablation)
