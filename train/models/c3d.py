"""C3D: eight 3x3x3 convolutions, five poolings, two wide linear layers (Tran et al. 2015, arXiv:1412.0767).

At 16x112x112 this is the published net. A smaller clip has less to halve: a pooling leaves an axis of length 1 as
it is. Shapes: B batch, T frames, H, W picture, C channels, D width, K classes.
"""

import torch
from torch import Tensor, nn

from toolkit.contract import Contract
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig

__all__ = ["C3D", "make"]

#: name -> channels; a pooling follows each letterless and each ``b`` layer.
CONVOLUTIONS = {
    "conv1": 64, "conv2": 128, "conv3a": 256, "conv3b": 256, "conv4a": 512, "conv4b": 512, "conv5a": 512, "conv5b": 512,
}  # fmt: skip
HIDDEN = 4096


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "C3D":
    """The registry's constructor."""
    return C3D(config, classes, (3, *preprocess.size), frames)


class C3D(nn.Module):
    """Clip model: (B, 3, T, H, W) -> logits (B, K). ``embed`` is fc7, 4096 wide."""

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frame, self.frames = config, classes, frame, frames
        channels, shape = 3, [frames, *frame[1:]]
        self.pools: dict[str, nn.MaxPool3d] = {}
        for name, count in CONVOLUTIONS.items():
            wide = max(4, round(count * config.width))
            self.add_module(name, nn.Conv3d(channels, wide, 3, padding=1))
            channels = wide
            if not name.endswith("a"):
                self.pools[name] = _pool(shape, spatial=name == "conv1", padded=name == "conv5b")
        self.channels, self.width = channels, max(8, round(HIDDEN * config.width))
        self.fc6 = nn.Linear(channels * shape[0] * shape[1] * shape[2], self.width)
        self.fc7 = nn.Linear(self.width, self.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.width, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def contract(self) -> Contract:
        """A clip model's contract."""
        return Contract(kind="clip", frame=self.frame, classes=self.classes, frames=self.frames)

    def layers(self) -> list[str]:
        """The convolutions, fc6, fc7, head."""
        return [*CONVOLUTIONS, "fc6", "fc7", "head"]

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Maps after the last pooling (B, 512, T / 16, H / 32, W / 32)."""
        x_BCTHW = clip_BCTHW
        for name in CONVOLUTIONS:
            x_BCTHW = torch.relu(self.get_submodule(name)(x_BCTHW))
            if name in self.pools:
                x_BCTHW = self.pools[name](x_BCTHW)
        return x_BCTHW

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """fc7 after its ReLU (B, D)."""
        x_BD = self.dropout(torch.relu(self.fc6(self.forward_features(clip_BCTHW).flatten(1))))
        out: Tensor = torch.relu(self.fc7(x_BD))
        return out

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.dropout(self.embed(clip_BCTHW)))
        return logits


def _pool(shape: list[int], spatial: bool, padded: bool) -> nn.MaxPool3d:
    """The next pooling; ``shape`` [T, H, W] is updated. The last one is padded in space: 7 -> 4."""
    kernel = [1 if size == 1 or (axis == 0 and spatial) else 2 for axis, size in enumerate(shape)]
    padding = [1 if padded and axis > 0 and kernel[axis] == 2 else 0 for axis in range(3)]
    for axis in range(3):
        shape[axis] = (shape[axis] + 2 * padding[axis] - kernel[axis]) // kernel[axis] + 1
    pool = nn.MaxPool3d((kernel[0], kernel[1], kernel[2]), padding=(padding[0], padding[1], padding[2]))
    return pool
