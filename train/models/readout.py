"""From the backbone's last feature map to logits: by appearance (average pooling) or by motion.

The motion readout looks only at how features change over several lags: how fast the features of a scene
decorrelate tells jerky from smooth motion, and leaving appearance out is what makes it hold on cameras never
seen in training. Each group has its own linear layer, so that int8
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
    """Linear layers over pooled feature changes. State: the last maps (B, C, H, W), newest first.

    Each lag gives ``|x_t - x_(t-lag)|`` and each bend ``|x_t - 2 x_(t-b) + x_(t-2b)|``, for which steady change
    cancels. Every map of changes is pooled by its mean, and by the maximum of small and of larger local means.
    """

    def __init__(
        self, channels: int, classes: int, lags: tuple[int, ...], bends: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.lags, self.bends = lags, bends
        self.depth = max(*lags, *(2 * bend for bend in bends), 1)
        self.dropout = nn.Dropout(dropout)
        groups = 3 * (len(lags) + len(bends))
        self.heads = nn.ModuleList(nn.Linear(channels, classes, bias=index == 0) for index in range(groups))

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        first = self.heads[0]
        assert isinstance(first, nn.Linear)
        return [first.in_features] * self.depth

    def features(self, x_BCHW: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Pooled changes, one (B, C) per group: for each lag, then each bend, the three poolings."""
        changes = [(x_BCHW - past[lag - 1]).abs() for lag in self.lags]
        for bend in self.bends:
            middle, oldest = past[bend - 1], past[2 * bend - 1]
            changes.append(((x_BCHW - middle) - (middle - oldest)).abs())
        return [pooled for change in changes for pooled in _pools(change)]

    def clip_features(self, x_BTCHW: Tensor) -> list[Tensor]:
        """The features of every frame of whole clips, zeros before the first: (B * T, C) per group."""
        frames = x_BTCHW.shape[1]
        padded = functional.pad(x_BTCHW, (0, 0, 0, 0, 0, 0, self.depth, 0))
        past = [padded[:, self.depth - k : self.depth - k + frames].flatten(0, 1) for k in range(1, self.depth + 1)]
        return self.features(x_BTCHW.flatten(0, 1), past)

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
        """All frames: (B, T, C, H, W) -> (B, T, K)."""
        return self._logits(self.clip_features(x_BTCHW)).reshape(*x_BTCHW.shape[:2], -1)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes: what structural tracing sees."""
        return self._logits(self.features(x_BCHW, [x_BCHW] * self.depth))


def _pools(x_BCHW: Tensor) -> list[Tensor]:
    """Mean, maximum of small local means, maximum of larger ones: (B, C) each, all of fixed size."""
    height, width = int(x_BCHW.shape[2]), int(x_BCHW.shape[3])
    windows = ((2, 2), (4, 2)) if min(height, width) >= 10 else ((1, 1), (min(3, height, width), 1))
    pooled = [functional.avg_pool2d(x_BCHW, (height, width))]
    for window, stride in windows:
        local = functional.avg_pool2d(x_BCHW, window, stride) if window > 1 else x_BCHW
        pooled.append(functional.max_pool2d(local, (int(local.shape[2]), int(local.shape[3]))))
    return [torch.flatten(value, 1) for value in pooled]
