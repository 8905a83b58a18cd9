"""What 3-D convolutional nets share that answer from the mean of their last maps: I3D, R(2+1)D, X3D.

Shapes: B batch, T frames, H, W picture, C channels, D width, K classes.
"""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from toolkit.contract import Contract
from toolkit.recipe import TeacherConfig

__all__ = ["PooledNet"]


class PooledNet(nn.Module, ABC):
    """Clip model: (B, 3, T, H, W) -> maps (``forward_features``) -> their mean (B, D) -> logits (B, K)."""

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frame, self.frames = config, classes, frame, frames

    def _finish(self, channels: int, mode: Literal["fan_in", "fan_out"], width: int | None = None) -> None:
        """Put the head on maps of ``channels`` (or on ``width``, if ``embed`` widens their mean), and initialise.

        The last line of a net's constructor.
        """
        self.channels, self.width = channels, width or channels
        self.dropout = nn.Dropout(self.config.dropout)
        self.head = nn.Linear(self.width, self.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def contract(self) -> Contract:
        """A clip model's contract."""
        return Contract(kind="clip", frame=self.frame, classes=self.classes, frames=self.frames)

    @abstractmethod
    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """The last maps (B, D, T', H', W')."""

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """Mean of the maps over time and space (B, D)."""
        return self.forward_features(clip_BCTHW).mean((2, 3, 4))

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.dropout(self.embed(clip_BCTHW)))
        return logits
