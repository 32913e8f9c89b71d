"""What every config of a VAE begins with: `base.py` without a chain, and the fields of a VAE."""

from ml_collections import ConfigDict

from experiments.configs import base

OF_DIFFUSION = ("schedule", "parameterization", "variance", "loss", "timesteps", "text")


def get_config() -> ConfigDict:
    """The base config of a VAE, without a data set."""
    config = base.get_config()
    for section in OF_DIFFUSION:
        del config[section]
    # The bound's divergence weighed (1 is the bound), a weight to which it grows from 0
    config.method = dict(name="vae", kl_weight=1.0, kl_warmup_steps=0)
    # p(x | z): gaussian | discretized_gaussian | discretized_logistic, all with a deviation, 0 a
    # learned one; or bernoulli
    config.likelihood = dict(name="discretized_logistic", deviation=0.0)

    # conv_vae, or mlp_vae (hidden_sizes, latent_size, dropout, dtype)
    config.model = ConfigDict(dict(name="conv_vae"))
    config.model.channels = 64  # width of the first level
    config.model.channel_multipliers = (1, 2, 2)  # widths of the levels, in `channels`
    config.model.num_blocks = 1  # residual blocks per level, either way
    config.model.attention_resolutions = ()  # heights at which every block gets attention
    config.model.latent_channels = 4  # of z, at the lowest level
    config.model.dropout = 0.0  # inside every residual block
    config.model.num_heads = 1  # of the attention
    config.model.norm_groups = 32  # of every GroupNorm
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.ema_decay = 0.999
    config.ema_warmup = 0.75
    config.train.flip = False

    config.train.batch_size = 64
    config.train.num_steps = 3_000
    config.train.checkpoint_every = config.train.preview_every = 1_000
    config.train.preview_images = 16
    config.sample.num_images = config.sample.batch_size = 64
    config.evaluate.metrics = "elbo,baselines"
    return config
