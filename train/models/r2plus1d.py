"""R(2+1)D-18: each 3-D convolution is a spatial one followed by a temporal one (Tran et al. 2018, arXiv:1711.11248).

Middle widths keep the parameters of the 3-D convolution. Layer names are torchvision's ``r2plus1d_18`` (31.5 M
parameters at 400 classes), so that its weights fit.
Shapes: B batch, T frames, H, W picture, C channels, D width, K classes.
"""

from torch import Tensor, nn
from torch.nn import functional

from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.pooled import PooledNet

__all__ = ["R2Plus1D", "make"]

STAGES = (64, 128, 256, 512)
BLOCKS = 2


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "R2Plus1D":
    """The registry's constructor."""
    return R2Plus1D(config, classes, (3, *preprocess.size), frames)


class R2Plus1D(PooledNet):
    """Clip model: (B, 3, T, H, W) -> logits (B, K) from the mean of the last maps."""

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__(config, classes, frame, frames)
        first, middle = _scaled(STAGES[0], config.width), _scaled(45, config.width)
        self.stem = nn.Sequential(
            nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), nn.BatchNorm3d(middle), nn.ReLU(True),
            nn.Conv3d(middle, first, (3, 1, 1), 1, (1, 0, 0), bias=False), nn.BatchNorm3d(first), nn.ReLU(True),
        )  # fmt: skip
        channels = first
        for number, count in enumerate(STAGES, 1):
            wide = _scaled(count, config.width)
            blocks = []
            for index in range(BLOCKS):
                blocks.append(_Residual(channels, wide, 2 if number > 1 and index == 0 else 1))
                channels = wide
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self._finish(channels, "fan_out")

    def layers(self) -> list[str]:
        """Stem, the residual blocks, head."""
        blocks = [f"layer{number}.{index}" for number in range(1, len(STAGES) + 1) for index in range(BLOCKS)]
        return ["stem", *blocks, "head"]

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Maps (B, 512, T / 8, H / 16, W / 16)."""
        x_BCTHW: Tensor = self.stem(clip_BCTHW)
        for number in range(1, len(STAGES) + 1):
            x_BCTHW = self.get_submodule(f"layer{number}")(x_BCTHW)
        return x_BCTHW


class _Residual(nn.Module):
    """Two (2+1)D convolutions and the way around them."""

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        middle = max(1, channels * wide * 27 // (channels * 9 + 3 * wide))
        self.conv1 = nn.Sequential(_split(channels, wide, middle, stride), nn.BatchNorm3d(wide), nn.ReLU(True))
        self.conv2 = nn.Sequential(_split(wide, wide, middle, 1), nn.BatchNorm3d(wide))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != wide:
            self.downsample = nn.Sequential(nn.Conv3d(channels, wide, 1, stride, bias=False), nn.BatchNorm3d(wide))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T / stride, H / stride, W / stride)."""
        around = x_BCTHW if self.downsample is None else self.downsample(x_BCTHW)
        return functional.relu(self.conv2(self.conv1(x_BCTHW)) + around)


def _split(channels: int, wide: int, middle: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(middle), nn.ReLU(True),
        nn.Conv3d(middle, wide, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )  # fmt: skip


def _scaled(channels: int, width: float) -> int:
    return max(4, round(channels * width))
