"""What an objective sees of an encoder: its features as a map or as one vector, whatever its family.

An objective borrows the encoder, it does not own it: the mixture owns it once, so that it is saved, moved and
optimised once, however many objectives train it.
Shapes: B batch, C = 3 channels, T frames, H, W picture, N tokens, D width, t, h, w feature map.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "borrow", "feature_map", "pooled", "shapes"]


@runtime_checkable
class Encoder(Protocol):
    """The part of an encoder that objectives use."""

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Tokens (B, N, D), or a feature map (B, D, t, h, w)."""
        ...


def borrow(module: nn.Module, encoder: Encoder) -> None:
    """Make ``module.encoder`` the encoder without registering it as a part of the module."""
    module._modules.pop("encoder", None)
    object.__setattr__(module, "encoder", encoder)


def feature_map(encoder: Encoder, clip_BCTHW: Tensor) -> Tensor:
    """Features in their places (B, D, t, h, w): tokens go back to the grid that they came from."""
    features = encoder.forward_features(clip_BCTHW)
    if features.ndim == 5:
        return features
    grid: tuple[int, ...] = encoder.grid  # type: ignore[attr-defined]
    return features.transpose(1, 2).reshape(len(features), -1, *grid)


def pooled(encoder: Encoder, clip_BCTHW: Tensor) -> Tensor:
    """One vector a clip (B, D): the encoder's own ``embed`` where it has one, else the mean of its features."""
    if hasattr(type(encoder), "embed"):
        vector: Tensor = encoder.embed(clip_BCTHW)  # type: ignore[attr-defined]
        return vector
    features = encoder.forward_features(clip_BCTHW)
    return features.mean(1) if features.ndim == 3 else features.mean((2, 3, 4))


def shapes(encoder: Encoder, clip: tuple[int, int, int, int]) -> tuple[int, tuple[int, int, int, int]]:
    """Width D of ``pooled`` and shape (D, t, h, w) of ``feature_map`` for clips (C, T, H, W), found by trying."""
    assert isinstance(encoder, nn.Module)
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        trial = torch.zeros(1, *clip, device=next(encoder.parameters()).device)
        width, shape = pooled(encoder, trial).shape[1], feature_map(encoder, trial).shape
    encoder.train(training)
    return width, (shape[1], shape[2], shape[3], shape[4])
