"""A VAE of the emoji at 32x32 that keeps what is seen: the encoder of latent_emoji and text_emoji.

python -m experiments.prepare --dataset=emoji
python -m experiments.main --config=experiments/configs/vae_emoji.py --workdir=runs/vae_emoji

Measured on 2 cores of an AMD EPYC that other programs used too, jax 0.10.2: 24 minutes; 25.7 +- 0.2
dB and 7.20 +- 0.21 bits/dim on the 333 held-out emoji: docs/latent.md.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, vae_base


def get_config(ablation: str = "") -> ConfigDict:
    """Latents of 8x8 with 4 channels (f = 4), little weight on their divergence.

    p(x | z) is a Gaussian of one deviation, in the bins of the 256 levels: the squared error, and
    yet a probability that bits per dimension can be computed from.
    """
    config = vae_base.get_config()
    config.data.name = "emoji"
    config.data.image_size = 32
    config.method.kl_weight = 0.1
    config.likelihood = ConfigDict(dict(name="discretized_gaussian", deviation=0.05))
    config.model.channels = 24
    config.model.channel_multipliers = (1, 2, 4)
    config.model.norm_groups = 8
    config.train.balance = "subjects"  # else two of three are people, in every tone, and flags
    config.optimizer.learning_rate = 2e-3
    config.optimizer.cosine_steps = 3_000
    config.evaluate.metrics = "elbo"
    config.evaluate.num_images = 0  # all, some 330
    config.evaluate.batch_size = 111
    return ablations.apply(config, ablation)
