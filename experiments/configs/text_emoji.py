"""Text to image: the latents of vae_emoji.py, told the names of the emoji word by word.

    python -m experiments.main --config=experiments/configs/text_emoji.py \\
        --workdir=runs/text_emoji --config.encoder.workdir=runs/vae_emoji
    python -m experiments.main --mode=sample --workdir=runs/text_emoji \\
        --config.sample.prompts="red apple,smiling cat"

Measured on 2 cores of an AMD EPYC that other programs used too, jax 0.10.2: 59 minutes to a loss of
0.075; docs/latent.md shows what it draws.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, latent_emoji


def get_config(ablation: str = "") -> ConfigDict:
    """The model of latent_emoji, whose every block attends to the words of a caption.

    Every tenth caption is left out, so that sampling can be guided away from what has none.
    """
    config = latent_emoji.get_config()
    config.text = ConfigDict(
        dict(
            name="words",
            vocabulary=None,  # None: the words of the train split
            length=16,
            width=128,
            depth=2,
            num_heads=4,
            dropout=0.1,
        )
    )
    config.model.cross_attention_resolutions = (8, 4)
    config.sample.guidance_scale = 3.0
    config.sample.num_images = 16
    config.evaluate.metrics = "samples"
    config.sample.prompts = "@train"  # in turn
    return ablations.apply(config, ablation)
