"""The digits with a DiT for the U-Net; all else as in digits.py.

    python -m experiments.main --config=experiments/configs/digits_dit.py --workdir=runs/digits_dit

Measured on one core of an AMD EPYC that other programs used too, jax 0.10.2: 7 minutes of its time;
1.955 +- 0.013 bits/dim on the 300 test images (the U-Net 1.881 +- 0.015): docs/networks.md.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config(ablation: str = "") -> ConfigDict:
    """Patches of 2x2 pixels, 16 tokens, and as many parameters as the U-Net has: 0.7 million."""
    config = digits.get_config()
    config.model = ConfigDict(
        dict(
            name="dit",
            patch_size=2,
            hidden_size=96,
            depth=4,
            num_heads=4,
            mlp_ratio=4.0,
            dropout=0.1,  # as for the U-Net
            fourier_features=(),
            class_conditional=False,
            label_dropout=0.0,
            remat=False,
            dtype="float32",
        )
    )
    return digits.apply(config, ablation)
