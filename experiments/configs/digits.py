"""scikit-learn's 8x8 digits: the default, which needs neither a network nor an accelerator.

    python -m experiments.main --config=experiments/configs/digits.py --workdir=runs/digits

Measured on 2 cores of an AMD EPYC that other programs used too, jax 0.10.2: 17 minutes with the
installation; 1.882 +- 0.014 bits/dim on the 300 test images (one histogram per pixel 2.424, one
Gaussian per pixel 2.734, untrained network 3.987). Rows of the paper's Table 2:
docs/digits_ablations.
"""

from types import MappingProxyType

from ml_collections import ConfigDict

from experiments.configs import ablations, base

# Of a path: where the noise is 0.045 of the signal, as at the chain's start
START = MappingProxyType(
    {
        "straight": dict(start=0.043),
        "edm": dict(noise_min=0.045),
        "cosine": dict(log_snr_max=6.2),
        "vp": dict(start=0.01),
        "linear_snr": dict(log_snr_max=6.2),
    }
)


def get_config(ablation: str = "") -> ConfigDict:
    """eps prediction with IDDPM's variance, a small U-Net and a short run.

    The digits have 17 grey levels, 0.125 apart in [-1, 1]. The chain starts where they begin to
    blur into each other, at a deviation of 0.045: the paper's beta_start = 1e-4, meant for 256
    levels, would spend a third of the bits on telling noises apart that are all far smaller than a
    level. Paths in continuous time start there too (START). A fixed variance cannot follow how
    certain the next pixel value then is; the paper's fixed one is the ablation `eps_simple`.
    """
    config = base.get_config()
    config.data.name = "digits"
    config.schedule.beta_start = 2e-3
    config.variance = ConfigDict(dict(name="learned_range"))
    compared = dict(weighting=dict(name="uniform"), space=dict(name="output"))
    config.loss = ConfigDict(dict(name="hybrid", vlb_coefficient=1e-3, **compared))

    config.model.channels = 32
    config.model.channel_multipliers = (1, 2)  # 8x8 and 4x4
    config.model.num_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.dropout = 0.1  # without it 1,497 training images are soon known by heart

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.ema_decay = 0.998  # a run of thousands of steps needs a shorter memory

    config.train.batch_size = 64
    config.train.num_steps = 4_000
    config.train.flip = False  # a mirrored digit is not a digit
    config.train.steps_per_call = 10
    config.train.log_every = 100
    config.train.preview_every = 2_000
    config.train.preview_images = 16
    config.train.preview_num_steps = 50
    config.train.checkpoint_every = 1_000

    config.sample.num_images = 64
    config.sample.batch_size = 64

    config.evaluate.num_images = 0  # all 300
    config.evaluate.batch_size = 150
    return apply(config, ablation)


def apply(config: ConfigDict, ablation: str) -> ConfigDict:
    """`ablations.apply`, and a path that it may bring begins where the chain does."""
    config = ablations.apply(config, ablation)
    if "path" in config:
        config.path.update(START[config.path.name])
    return config
