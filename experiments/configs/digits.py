"""scikit-learn's 8x8 digits: the default, which needs neither a network nor an accelerator.

python -m experiments.main --config=experiments/configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from experiments.configs import ablations, base


def get_config(ablation: str = "") -> ConfigDict:
    """A small U-Net and a short run; the chain and the objective are the paper's."""
    config = base.get_config()
    config.data.name = "digits"

    config.model.channels = 32
    config.model.channel_multipliers = (1, 2)  # 8x8 and 4x4
    config.model.num_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.dropout = 0.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.ema_decay = 0.995  # a run of thousands of steps needs a shorter memory

    config.train.num_steps = 3_000
    config.train.flip = False  # a mirrored digit is not a digit
    config.train.steps_per_call = 10
    config.train.log_every = 100
    config.train.preview_every = 1_000
    config.train.preview_images = 16
    config.train.preview_num_steps = 50
    config.train.checkpoint_every = 1_000

    config.sample.num_images = 64
    config.sample.batch_size = 64

    config.evaluate.num_images = 100
    config.evaluate.batch_size = 50
    return ablations.apply(config, ablation)
