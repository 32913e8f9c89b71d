"""What the paper's 256x256 runs share: 113.7 million parameters, no dropout, fixed_small.

They train on all images. With data.test_fraction above 0 a part of them is held out, and
evaluate.split=test names it.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """DDPM App. B: six levels, learning rate 2e-5, batch 64."""
    config = base.get_config()
    config.model.channel_multipliers = (1, 1, 2, 2, 4, 4)  # 256x256 down to 8x8
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.0
    config.variance = ConfigDict(dict(name="fixed_small"))
    config.optimizer.learning_rate = 2e-5
    config.train.batch_size = 64
    config.train.steps_per_call = 1
    config.loader.in_memory = False
    config.loader.num_workers = 8  # decoding processes
    config.sample.num_images = 64
    config.sample.batch_size = 32
    config.evaluate.split = "train"  # there is no other
    config.evaluate.num_images = 200
    config.evaluate.batch_size = 50
    return config
