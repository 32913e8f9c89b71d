"""Any folder of pictures: only where it is and how large its squares shall be must be said.

    python -m experiments.main --config=experiments/configs/image_folder.py \
        --config.data.path=PICTURES --config.data.image_size=64 --workdir=runs/mine

Network, batches and rate follow the size (`by_size.BY_SIZE`) unless they are given as well. The
whole training is meant for a GPU; docs/own_data.md has what to change on a laptop. Not measured.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import ablations, base, by_size


def get_config(ablation: str = "") -> ConfigDict:
    """The paper's method under Adam and a global clip, with what depends on the size left open."""
    config = base.get_config()
    config.data = ConfigDict(dict(name="image_folder", path="", test_fraction=0.05))
    config.data.channels = 3  # 1 is grey
    config.data.background = "white"  # of what is transparent: white | black
    # The values of black and white in files of more than 8 bits, such as (0, 4095) for 12 in a file
    # of 16; () is 0 and 65535, in floating point 0 and 1
    config.data.value_range = ()
    config.data.num_classes = 0  # as many folders in `path` are classes; 0: no labels
    config.data.classes = config_dict.placeholder(tuple)  # their names by number; None: as found
    config.data.image_size = config_dict.placeholder(int)
    for field in by_size.BY_SIZE:
        section, name = field.split(".")
        config[section][name] = config_dict.placeholder(type(config[section][name]))
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.ema_decay = 0.999
    config.train.num_steps = 100_000
    config.train.preview_every = config.train.checkpoint_every = 1_000
    config.train.preview_images = 16
    config.sample.num_images = 64
    return ablations.apply(config, ablation)
