"""The program around the mathematics of diffusion/, and a trained model in Python: `load`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.api import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """What `api` offers, without importing jax for those who use nothing of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from experiments import api

    return getattr(api, name)
