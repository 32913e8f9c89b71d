"""What ablations do to a config; `ablations.py` names them and says where they come from."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

Change = Callable[[ConfigDict], None]


class Ablation(NamedTuple):
    """One named change and what is known of it."""

    summary: str  # one line
    source: str  # the paper and the place in it
    keys: tuple[str, ...]  # dotted fields or subtrees that differ from the config of some data set
    change: Change
    expected: str = ""  # published numbers with their data set, or "unstable"


# Of every optimizer
RATE = ("learning_rate", "warmup_steps", "cosine_steps", "final_learning_rate")


def objective(parameterization: str, loss: str, variance: str) -> Change:
    """What the network predicts, the loss and the variance, whatever the data set's config has."""

    def change(config: ConfigDict) -> None:
        num_timesteps = config.schedule.num_timesteps
        compared = dict(weighting=dict(name="uniform"), space=dict(name="output"))
        losses = {
            "simple": dict(name="simple", **compared),
            "vlb": dict(name="vlb", scale=1.0 / num_timesteps),  # the original's: without T
            "hybrid": dict(name="hybrid", vlb_coefficient=1e-3, **compared),
        }
        config.parameterization = ConfigDict(dict(name=parameterization))
        config.loss = ConfigDict(losses[loss])
        config.variance = ConfigDict(dict(name=variance))
        if parameterization == "mu" or variance == "learned":
            config.train.preview_num_steps = 0  # such a network knows single steps only

    return change


def schedule(name: str, num_timesteps: int) -> Change:
    """The chain; betas meant for T = 1000 are scaled by 1000 / T, so that it ends in noise."""
    start, end = 1e-4 * 1000 / num_timesteps, 0.02 * 1000 / num_timesteps
    keywords: dict[str, float] = dict(beta_start=start, beta_end=end)
    if name == "constant":
        keywords = dict(beta=end)
    if name == "cosine":
        keywords = {}

    def change(config: ConfigDict) -> None:
        config.schedule = ConfigDict(dict(name=name, num_timesteps=num_timesteps, **keywords))

    return change


def improved(loss: str, timesteps: str) -> Change:
    """IDDPM's chain, variance and unclipped gradient, on as many timesteps as the config has."""

    def change(config: ConfigDict) -> None:
        schedule("cosine", config.schedule.num_timesteps)(config)
        objective("eps", loss, "learned_range")(config)
        config.timesteps = ConfigDict(dict(name=timesteps))
        clip_none(config)

    return change


def improved_cifar10(config: ConfigDict) -> None:
    """IDDPM App. A: how its models of CIFAR-10 were trained, with L_hybrid."""
    config.schedule.num_timesteps = 4000
    improved("hybrid", "uniform")(config)
    config.optimizer.learning_rate = 1e-4
    config.model.dropout = 0.3
    config.ema_decay = 0.9999
    config.train.batch_size = 128
    config.train.num_steps = 500_000


def min_snr(config: ConfigDict) -> None:
    """Hang et al. 2023, Eq. 6, with their gamma."""
    config.loss.weighting = ConfigDict(dict(name="min_snr", gamma=5.0))


def dropout(rate: float) -> Change:
    """In every residual block."""

    def change(config: ConfigDict) -> None:
        config.model.dropout = rate

    return change


def flip(mirror: bool) -> Change:
    """Whether training images are mirrored."""

    def change(config: ConfigDict) -> None:
        config.train.flip = mirror

    return change


def clip_none(config: ConfigDict) -> None:
    """The gradient as it is."""
    config.clip = ConfigDict(dict(name="none"))


def rmsprop(config: ConfigDict) -> None:
    """TensorFlow 1's RMSProp with its standard values, at the config's learning rate."""
    kept = {name: config.optimizer[name] for name in RATE}
    config.optimizer = ConfigDict(dict(name="rmsprop", **kept, decay=0.9, momentum=0.0, eps=1e-10))


def faithful(config: ConfigDict) -> None:
    """The updates of the original's code."""
    config.clip = ConfigDict(dict(name="per_core", max_norm=1.0, num_cores=8))
    config.optimizer.epsilon_hat = True
    config.model.dtype = "float32"


def modern(config: ConfigDict) -> None:
    """Updates as most do them today."""
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    config.optimizer.epsilon_hat = False
    config.model.dtype = "bfloat16"


def large(config: ConfigDict) -> None:
    """The width and at most the steps of the paper's large network.

    Raises:
        ValueError: for another network than the paper's.
    """
    if config.model.name != "unet":
        raise ValueError(
            f"the ablation `large` widens the U-Net, and config.model.name = {config.model.name!r} "
            "has no such width. Set the sizes of this network themselves, such as "
            "--config.model.hidden_size for a dit."
        )
    config.model.channels = 192
    config.train.num_steps = min(config.train.num_steps, 1_150_000)
