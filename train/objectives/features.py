"""What an objective sees of an encoder: its features as a map or as one vector, whatever its family.

An objective borrows the encoder, it does not own it: the mixture owns it once, so that it is saved, moved and
optimised once, however many objectives train it.
Shapes: B batch, C = 3 channels, T frames, H, W picture, N tokens, D width, t, h, w feature map.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from toolkit.errors import UserError

__all__ = ["Encoder", "borrow", "feature_map", "pooled", "shape_of"]


@runtime_checkable
class Encoder(Protocol):
    """The part of an encoder that objectives use."""

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Tokens (B, N, D), or a feature map (B, D, t, h, w)."""
        ...

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        ...


def borrow(module: nn.Module, encoder: Encoder) -> None:
    """Make ``module.encoder`` the encoder without registering it as a part of the module."""
    module._modules.pop("encoder", None)
    object.__setattr__(module, "encoder", encoder)


def feature_map(encoder: Encoder, clip_BCTHW: Tensor) -> Tensor:
    """Features in their places (B, D, t, h, w): tokens go back to the grid that they came from.

    Raises:
        UserError: the encoder does not say where its tokens came from.
    """
    features = encoder.forward_features(clip_BCTHW)
    if features.ndim == 5:
        return features
    grid: tuple[int, ...] | None = getattr(encoder, "grid", None)
    if grid is None:
        raise UserError(
            f"{type(encoder).__name__} does not say where its tokens lie in the clip: reconstruct from one vector, "
            "with whole = true in the objective's settings"
        )
    return features.transpose(1, 2).reshape(len(features), -1, *grid)


def pooled(encoder: Encoder, clip_BCTHW: Tensor) -> Tensor:
    """One vector a clip (B, D): what a head would see."""
    return encoder.embed(clip_BCTHW)


def shape_of(see: Callable[[Encoder, Tensor], Tensor], encoder: Encoder, clip: tuple[int, int, int, int]) -> list[int]:
    """The shape of what ``see`` (``pooled``, ``feature_map``) finds in one clip (C, T, H, W), without the batch."""
    assert isinstance(encoder, nn.Module)
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        shape = see(encoder, torch.zeros(1, *clip, device=next(encoder.parameters()).device)).shape
    encoder.train(training)
    return list(shape[1:])
