"""The dense anchor-free head (FCOS, Tian et al. 2019, arXiv:1904.01355): scores, distances and expected overlap.

It stands where a classifier has its readout, so a streaming student keeps its contract: one more answer vector, no
new kind of state. Only convolutions, ReLU6, concat and one reshape: what every exporter takes. A second level comes
from the first by a convolution of stride 2. Shapes: B batch, T time, C channels, K classes, N numbers of an answer.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.detection import DetectionSpec, Level
from toolkit.recipe import BoxesConfig

__all__ = ["BoxReadout", "DetectHead", "spec_of"]

# Focal loss wants rare positives from the start (Lin et al. 2017, section 4.1).
PRIOR = 0.02


def spec_of(size: tuple[int, int], stride: int, config: BoxesConfig) -> DetectionSpec:
    """Levels over a first feature map of ``size`` (rows, cols) with this stride."""
    levels, (rows, cols) = [], size
    for _ in range(config.levels):
        levels.append(Level(stride=stride, rows=rows, cols=cols))
        stride, rows, cols = 2 * stride, math.ceil(rows / 2), math.ceil(cols / 2)
    return DetectionSpec(levels=tuple(levels), score=config.score, overlap=config.overlap)


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class DetectHead(nn.Module):
    """(B, C, rows, cols) -> (B, N). Levels share the weights of the outputs, as in FCOS."""

    def __init__(self, channels: int, classes: int, config: BoxesConfig) -> None:
        super().__init__()
        width = config.channels
        self.neck = _block(channels, width, 1)
        self.down = nn.ModuleList(_block(width, width, 3, 2) for _ in range(config.levels - 1))
        self.tower = nn.Sequential(_block(width, width, 3, groups=width), _block(width, width, 1))
        self.scores = nn.Conv2d(width, classes, 1)
        self.distances = nn.Conv2d(width, 4, 1)
        self.quality = nn.Conv2d(width, 1, 1)
        for layer, bias in ((self.scores, -math.log(1 / PRIOR - 1)), (self.distances, 2.0), (self.quality, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """All levels, one after the other."""
        return self.answer(self.neck(x_BCHW))

    def answer(self, x_BCHW: Tensor) -> Tensor:
        """The same from the neck's output."""
        maps = [x_BCHW]
        for down in self.down:
            maps.append(down(maps[-1]))
        answers = [self._level(self.tower(each)) for each in maps]
        return answers[0] if len(answers) == 1 else torch.cat(answers, 1)

    def _level(self, x_BCHW: Tensor) -> Tensor:
        answer = torch.cat([self.scores(x_BCHW), self.distances(x_BCHW), self.quality(x_BCHW)], 1)
        return torch.flatten(answer, 1)


class BoxReadout(nn.Module):
    """The head as a student's readout, with a temporal module behind its neck or None. State: that module's."""

    def __init__(self, channels: int, classes: int, config: BoxesConfig, temporal: Any = None) -> None:
        super().__init__()
        self.head = DetectHead(channels, classes, config)
        self.temporal = temporal

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        channels: list[int] = [] if self.temporal is None else self.temporal.state_channels()
        return channels

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame: (B, C, H, W) -> (B, N)."""
        if self.temporal is None:
            return self.still(x_BCHW), []
        looked, following = self.temporal.step(self.head.neck(x_BCHW), states)
        return self.head.answer(looked), following

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames: (B, T, C, H, W) -> (B, T, N)."""
        batch, frames = x_BTCHW.shape[:2]
        x = self.head.neck(x_BTCHW.flatten(0, 1))
        if self.temporal is not None:
            x = self.temporal.clip(x.unflatten(0, (batch, frames))).flatten(0, 1)
        return self.head.answer(x).reshape(batch, frames, -1)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes."""
        x = self.head.neck(x_BCHW)
        return self.head.answer(x if self.temporal is None else self.temporal.still(x))
