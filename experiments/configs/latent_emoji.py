"""Diffusion in the latent space of the VAE of emoji (vae_emoji.py), decoded after sampling.

    python -m experiments.main --config=experiments/configs/latent_emoji.py \\
        --workdir=runs/latent_emoji --config.encoder.workdir=runs/vae_emoji

Its 7,000 steps were not run with its own schedule of the rate; after 4,960 at a constant one it is
compared with a model of pixels in docs/latent.md.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, base


def get_config(ablation: str = "") -> ConfigDict:
    """A U-Net on two levels, 8x8 and 4x4, for the latents of 32x32 images at f = 4."""
    config = base.get_config()
    config.data.name = "emoji"
    config.data.image_size = 32
    config.encoder = ConfigDict(
        dict(
            **dict(name="vae", workdir="runs/vae_emoji", checkpoint=0),  # 0: the newest step
            **dict(identity="", shift=(), scale=()),  # found at the first start
        )
    )

    config.model.channels = 64
    config.model.channel_multipliers = (1, 2)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (8, 4)
    config.model.num_heads = 4
    config.model.dropout = 0.0

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 500
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.ema_decay = 0.999
    config.ema_warmup = 0.75
    config.train.batch_size = 64
    config.train.num_steps = config.optimizer.cosine_steps = 7_000
    config.train.balance = "subjects"  # else two of three are people, in every tone, and flags
    config.train.flip = False  # a mirrored letter, flag or clock is none
    config.train.preview_every = 1_000
    config.train.preview_images = 16
    config.train.preview_num_steps = 50
    config.train.checkpoint_every = 1_000

    config.sample.sampler = ConfigDict(dict(name="ddim", eta=0.0))
    config.sample.num_steps = 50
    config.sample.threshold = ConfigDict(dict(name="none"))  # latents do not stay in [-1, 1]
    config.sample.num_images = 64
    config.sample.batch_size = 64
    config.evaluate.clip_denoised = False
    config.evaluate.metrics = "samples"
    config.evaluate.num_images = 0  # all, some 330
    config.evaluate.batch_size = 111
    return ablations.apply(config, ablation)
