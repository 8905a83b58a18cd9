"""Small clip models for the export tests."""

import torch
from torch import Tensor, nn

from toolkit.contract import Contract

SIDE, FRAMES, CLASSES = 16, 4, 3


class ClipNet(nn.Module):
    """Any 3-D net (B, 3, T, H, W) -> (B, K) with a clip contract."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def contract(self) -> Contract:
        return Contract(kind="clip", frame=(3, SIDE, SIDE), classes=CLASSES, frames=FRAMES)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        out: Tensor = self.net(clip_BCTHW)
        return out


def convolutions(*between: nn.Module, groups: int = 1) -> ClipNet:
    """Two 3-D convolutions with batch norm, and ``between`` them what is to be tried."""
    torch.manual_seed(0)
    first, second = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1, groups=groups)
    head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(16, CLASSES))
    model = ClipNet(first, nn.BatchNorm3d(8), nn.ReLU(), *between, second, nn.ReLU(), *head).eval()
    nn.init.normal_(model.net[-1].weight, std=2.0)  # type: ignore[arg-type]
    return model


def clip_streams(count: int, frames: int = 8) -> list[Tensor]:
    """Blobs that move, at another brightness in every stream, so that the answers differ."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for index in range(count):
        base = torch.randn(3, SIDE // 4, SIDE // 4, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
        flow = torch.stack([torch.roll(base, time, 2) for time in range(frames)])
        found.append(flow * (0.5 + index % 3))
    return found
