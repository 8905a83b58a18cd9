"""From the backbone's last feature map to logits: by appearance (average pooling) or by motion.

The motion readout looks only at how features change: for each lag it pools ``|x_t - x_(t-lag)|`` over the
picture by mean and by maximum, and adds the second difference ``|x_t - 2 x_(t-1) + x_(t-2)|``. How fast the
features of a scene decorrelate over the lags tells jerky from smooth motion, and leaving appearance out is
what makes it hold on cameras never seen in training. Each group has its own linear layer, so that int8
gives each its own range.

Shapes: B batch, T time, C channels, H, W picture, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AverageReadout", "MotionReadout"]


class AverageReadout(nn.Module):
    """1x1 convolution to ``width`` channels, global average, dropout, linear (MobileNetV2's own head). Stateless."""

    def __init__(self, last: nn.Sequential, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.last = last
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def state_channels(self) -> list[int]:
        """No state."""
        return []

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame: (B, C, H, W) -> logits (B, K)."""
        return self.still(x_BCHW), []

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames: (B, T, C, H, W) -> (B, T, K)."""
        return self.still(x_BTCHW.flatten(0, 1)).reshape(*x_BTCHW.shape[:2], -1)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes."""
        logits: Tensor = self.head(self.dropout(self.last(x_BCHW).mean((2, 3))))
        return logits


class MotionReadout(nn.Module):
    """Linear layers over pooled feature differences. State: the last ``max(lags)`` maps (B, C, H, W), newest first."""

    def __init__(self, channels: int, classes: int, lags: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.lags = lags
        self.channels = channels
        self.depth = max(*lags, 2)
        self.dropout = nn.Dropout(dropout)
        groups = 2 * len(lags) + 1
        self.heads = nn.ModuleList(nn.Linear(channels, classes, bias=index == 0) for index in range(groups))

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        return [self._first().in_features] * self.depth

    def _first(self) -> nn.Linear:
        first = self.heads[0]
        assert isinstance(first, nn.Linear)
        return first

    def features(self, x_BCHW: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Pooled differences, one (B, C) per group: mean of each lag, maximum of each lag, second difference."""
        changes = [(x_BCHW - past[lag - 1]).abs() for lag in self.lags]
        bend = (x_BCHW - past[0] - past[0] + past[1]).abs()
        return [*(change.mean((2, 3)) for change in changes), *(_peak(change) for change in changes), _peak(bend)]

    def _logits(self, features: list[Tensor]) -> Tensor:
        first, *others = [head(self.dropout(feature)) for head, feature in zip(self.heads, features, strict=True)]
        logits: Tensor = first
        for other in others:
            logits = logits + other
        return logits

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame and the maps before it -> logits (B, K) and the maps to remember."""
        return self._logits(self.features(x_BCHW, states)), [x_BCHW, *states[:-1]]

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames, zeros before the first: (B, T, C, H, W) -> (B, T, K)."""
        frames = x_BTCHW.shape[1]
        padded = functional.pad(x_BTCHW, (0, 0, 0, 0, 0, 0, self.depth, 0))
        past = [
            padded[:, self.depth - lag : self.depth - lag + frames].flatten(0, 1) for lag in range(1, self.depth + 1)
        ]
        logits = self._logits(self.features(x_BTCHW.flatten(0, 1), past))
        return logits.reshape(*x_BTCHW.shape[:2], -1)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes: what structural tracing sees."""
        return self._logits(self.features(x_BCHW, [x_BCHW] * self.depth))


def _peak(x_BCHW: Tensor) -> Tensor:
    """Spatial maximum (B, C), as a pooling of fixed size that every compiler knows."""
    height, width = int(x_BCHW.shape[2]), int(x_BCHW.shape[3])
    return torch.flatten(functional.max_pool2d(x_BCHW, (height, width)), 1)
