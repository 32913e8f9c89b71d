"""A VAE of Fashion-MNIST, by its bound: bits per dimension beside those of a diffusion model.

    python -m experiments.prepare --dataset=fashion_mnist
    python -m experiments.main --config=experiments/configs/vae_fashion.py \\
        --workdir=runs/vae_fashion

Measured on 2 cores of an AMD EPYC, jax 0.10.2: 13 minutes; 3.348 +- 0.030 bits/dim on the first
1,000 test images (16 importance draws: 3.303 +- 0.029), 24.1 dB: docs/latent.md.
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, vae_base


def get_config(ablation: str = "") -> ConfigDict:
    """Latents of 7x7 with 8 channels, and a discretized logistic of learned scale."""
    config = vae_base.get_config()
    config.data.name = "fashion_mnist"
    config.data.pad_to = 28
    config.model.channels = 24
    config.model.channel_multipliers = (1, 2, 4)
    config.model.latent_channels = 8
    config.model.norm_groups = 8
    config.method.kl_warmup_steps = 500
    config.optimizer.learning_rate = 2e-3
    config.optimizer.cosine_steps = 3_000
    config.evaluate.metrics = "elbo"
    config.evaluate.num_images = 1_000  # of 10,000
    config.evaluate.num_importance = 16
    config.evaluate.batch_size = 100
    return ablations.apply(config, ablation)
