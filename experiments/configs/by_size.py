"""What suits pictures of a size, where a config leaves it open (None)."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

# Widths of the levels, by the least size that they are meant for; the paper's at 32 and 256.
LEVELS = MappingProxyType(
    {
        1: (1, 2),
        16: (1, 2, 2),
        32: (1, 2, 2, 2),
        64: (1, 1, 2, 2, 2),
        128: (1, 1, 2, 2, 4),
        256: (1, 1, 2, 2, 4, 4),
    }
)


def _step(size: int, steps: dict[int, Any]) -> Any:
    """The value of the largest least size that `size` reaches."""
    return steps[max(least for least in steps if least <= size)]


def levels(size: int) -> tuple[int, ...]:
    """Widths of the levels in units of the first, as many as the size can be halved for."""
    widths = _step(size, dict(LEVELS))
    while len(widths) > 1 and size % 2 ** (len(widths) - 1):
        widths = widths[:-1]
    return widths


def attention(size: int) -> tuple[int, ...]:
    """The largest height of a level that is at most 16, where there is one."""
    heights = [size // 2**level for level in range(len(levels(size)))]
    return tuple(height for height in heights if height <= 16)[:1]


BY_SIZE: MappingProxyType[str, Callable[[int], Any]] = MappingProxyType(
    {
        "model.channels": lambda size: _step(size, {1: 64, 128: 128}),
        "model.channel_multipliers": levels,
        "model.attention_resolutions": attention,
        "optimizer.learning_rate": lambda size: _step(size, {1: 2e-4, 128: 1e-4, 256: 2e-5}),
        "train.batch_size": lambda size: _step(size, {1: 128, 64: 64, 128: 32}),
        "train.steps_per_call": lambda size: _step(size, {1: 10, 64: 1}),
        "sample.batch_size": lambda size: _step(size, {1: 64, 128: 16}),
        "evaluate.batch_size": lambda size: _step(size, {1: 100, 64: 50, 128: 10}),
    }
)


def fill(config: ConfigDict) -> ConfigDict:
    """The config, or a copy with every field of BY_SIZE that is None as suits its data.image_size.

    Raises:
        ValueError: if there is such a field and no size.
    """
    open_fields = [field for field in BY_SIZE if _is_open(config, field)]
    if not open_fields:
        return config
    config, size = config.copy_and_resolve_references(), config.data.get("image_size")
    if not isinstance(size, int) or size < 1:
        raise ValueError(
            f"config.data.image_size = {size}: say how large the squares shall be in pixels, "
            "--config.data.image_size=64 for instance."
        )
    for field in open_fields:
        section, name = field.split(".")
        config[section][name] = BY_SIZE[field](size)
    return config


def _is_open(config: ConfigDict, field: str) -> bool:
    section, name = field.split(".")
    return section in config and config[section].get(name, 0) is None
