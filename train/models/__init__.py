"""Encoders and students, one file each, and how they are saved. Torch is imported on first use only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.models.store import Card, Loaded, Model, build, load_model, save_model

__all__ = ["Card", "Loaded", "Model", "build", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    """Names of ``train.models.store``."""
    if name not in __all__:
        raise AttributeError(f"module 'train.models' has no attribute {name!r}")
    from train.models import store

    return getattr(store, name)
