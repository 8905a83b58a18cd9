"""The clip encoders by name. Adding one is a file and a line here; listing them imports none.

Each module has ``make(config, classes, preprocess, frames)``, which returns an ``nn.Module`` that keeps the
``Encoder`` protocol. Shapes: B batch, C channels, T frames, H, W picture, N tokens, D width, K classes.
"""

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toolkit.contract import Contract
from toolkit.errors import UserError, nearest
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig

if TYPE_CHECKING:
    from torch import Tensor

    from train.models.store import ClipModel

__all__ = ["ENCODERS", "Encoder", "make_encoder", "module_of"]

#: name -> module. ``hf:<folder or hub id>`` names a classifier of ``transformers``.
ENCODERS = {
    "c3d": "train.models.c3d",
    "i3d": "train.models.i3d",
    "r2plus1d": "train.models.r2plus1d",
    "vit": "train.models.vit",
    "vit-s": "train.models.vit",
    "vit-b": "train.models.vit",
    "vit-l": "train.models.vit",
    "x3d-xs": "train.models.x3d",
    "x3d-s": "train.models.x3d",
    "x3d-m": "train.models.x3d",
    "x3d-l": "train.models.x3d",
    "hf": "train.models.hf",
}


@runtime_checkable
class Encoder(Protocol):
    """What every clip encoder has. ``width`` is D of ``embed``; ``channels`` is C or D of ``forward_features``."""

    config: TeacherConfig
    width: int
    channels: int

    def forward_features(self, clip_BCTHW: "Tensor") -> "Tensor":
        """Tokens (B, N, D) or maps (B, C, T', H', W')."""
        ...

    def embed(self, clip_BCTHW: "Tensor") -> "Tensor":
        """Pooled features (B, D): what the head sees."""
        ...

    def __call__(self, clip_BCTHW: "Tensor") -> Any:
        """Logits (B, K)."""
        ...

    def contract(self) -> Contract:
        """A clip model's contract."""
        ...

    def layers(self) -> list[str]:
        """Prefixes of all parameters' names, from the input to ``head``."""
        ...


def make_encoder(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "ClipModel":
    """Build ``config.encoder`` with a head for ``classes``, for clips of ``frames`` preprocessed pictures.

    Raises:
        UserError: unknown name (the nearest is named), or a clip that the encoder cannot take.
        MissingDependency: ``hf:`` without ``transformers``.
    """
    module = importlib.import_module(module_of(config.encoder))
    return cast("ClipModel", module.make(config, classes, preprocess, frames))


def module_of(encoder: str) -> str:
    """The module of an encoder, known without importing it.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    name = encoder.partition(":")[0]
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"unknown teacher.encoder {encoder!r}{nearest(name, ENCODERS)}; encoders: {known}")
    return ENCODERS[name]
