"""What must agree: between numbers that are compared, and between a run and its continuation.

Also how a config that was saved long ago reads under the names that fields have now.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from experiments.origin import NOTHING

# What the parameters of a checkpoint mean, and so cannot change after training.
MODEL = ("data.name", "schedule", "parameterization", "variance", "model")
# What cannot change between the start of a training run and its continuation.
TRAINING = (
    *(*MODEL, "seed", "loss", "timesteps", "optimizer", "clip", "ema_decay"),
    *("precision", "train.batch_size", "train.flip"),
)
# What older protocols mean by the absence of a field.
OLDER = MappingProxyType({"selected_on": NOTHING})
# What a comparison of numbers may be about; every other field of the protocols must agree.
FREE = (
    *("checkpoint", "checkpoint_step", "weights", "variance"),
    *("sampler", "num_steps", "spacing", "clip_denoised", "seed"),
)


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, as JSON has it, under the names that its fields have now.

    The clip `per_core` once had images_per_core, the examples of a group, where it has num_cores.
    The precision of products was the default of jax before it was a field.
    """
    config = {"precision": "default", **config}
    match config:
        case {
            "clip": {"images_per_core": int(images), **clip},
            "train": {"batch_size": int(batch_size)},
        } if images > 0:
            return {**config, "clip": {**clip, "num_cores": batch_size // images}}
    return config


def written(value: Any) -> str:
    """A protocol's value for people: a choice {name, **options} as name or name(option=...)."""
    if not isinstance(value, Mapping) or "name" not in value:
        return str(value)
    options = ", ".join(f"{key}={option}" for key, option in value.items() if key != "name")
    return f"{value['name']}({options})" if options else str(value["name"])


def differences(
    protocols: Sequence[Mapping[str, Any] | None], free: Sequence[str] = FREE
) -> dict[str, list[Any]]:
    """Fields in which the protocols that exist differ and must not: name -> value in each run.

    Args:
        protocols: of one quantity, run by run; None where a run lacks it.
        free: fields that may differ.
    """
    present = [protocol for protocol in protocols if protocol is not None]
    names = sorted({name for protocol in present for name in protocol} - set(free))
    result = {}
    for name in names:
        absent = OLDER.get(name, "absent")
        values = [None if p is None else p.get(name, absent) for p in protocols]
        if len({repr(v) for v, p in zip(values, protocols, strict=True) if p is not None}) > 1:
            result[name] = values
    return result
