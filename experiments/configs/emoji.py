"""Emoji at 32x32: some 3,600 pictures of Noto Color Emoji, of which 64x64 ones exist too.

    python -m experiments.prepare --dataset=emoji
    python -m experiments.main --config=experiments/configs/emoji.py --workdir=runs/emoji

The first needs Debian's package fonts-noto-color-emoji, or --from=FONT.ttf: docs/emoji.md. Not
measured.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, base


def get_config(ablation: str = "") -> ConfigDict:
    """The paper's network for 32x32 at half width, with more dropout: the pictures are few."""
    config = base.get_config()
    config.data.name = "emoji"
    config.data.image_size = 32  # or 64, which the same network takes

    config.model.channels = 64
    config.model.dropout = 0.2

    config.train.num_steps = 50_000
    config.train.flip = False  # a mirrored letter, flag or clock is none
    config.ema_decay = 0.999
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.train.preview_every = 2_000
    config.train.checkpoint_every = 2_000

    config.evaluate.num_images = 0  # all, some 330
    config.evaluate.batch_size = 111
    return ablations.apply(config, ablation)
