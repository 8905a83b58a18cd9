"""X3D: a tiny 2-D residual net expanded along one axis after the other (Feichtenhofer 2020, arXiv:2004.04730).

Its 3x3x3 convolutions are channelwise, mixing is left to the 1x1x1 ones around them; every second block has
squeeze-and-excitation, and swish follows it. Time is never strided. The paper's factors: gamma_w = 2 times ``width``,
gamma_b = ``bottleneck``, gamma_d = ``depth_factor``; gamma_t, gamma_tau and gamma_s are the recipe's ``data.frames``,
``preprocess.fps`` and ``preprocess.size``, so XS, S and M are one net at other clips. ``published_name`` gives every
weight's name in pytorchvideo's checkpoints. Fresh residual branches end in zero (Goyal et al. 2017, arXiv:1706.02677).
Shapes: B batch, T frames, H, W picture, C channels, D width, K classes.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.pooled import PooledNet

__all__ = ["X3D", "make", "published_name"]

STAGES = (12, 24, 48, 96)  # channels before gamma_w
BLOCKS = (1, 2, 5, 3)  # before gamma_d
WIDEN = 2.0  # the paper's gamma_w of all of XS, S, M and L
HIDDEN = 2048
SQUEEZE = 1 / 16

#: Our name -> pytorchvideo's. Its stem calls the spatial kernel ``conv_t`` and the temporal one ``conv_xy``.
_ENDS = {
    "stem.0": "blocks.0.conv.conv_t", "stem.1": "blocks.0.conv.conv_xy", "stem.2": "blocks.0.norm",
    "conv5.0": "blocks.5.pool.pre_conv", "conv5.1": "blocks.5.pool.pre_norm", "fc1": "blocks.5.pool.post_conv",
    "head": "blocks.5.proj",
}  # fmt: skip
_PARTS = {
    "expand.0": "branch2.conv_a", "expand.1": "branch2.norm_a",
    "channelwise.0": "branch2.conv_b", "channelwise.1": "branch2.norm_b.0",
    "gate.squeeze": "branch2.norm_b.1.block.0", "gate.excite": "branch2.norm_b.1.block.2",
    "reduce.0": "branch2.conv_c", "reduce.1": "branch2.norm_c",
    "downsample.0": "branch1_conv", "downsample.1": "branch1_norm",
}  # fmt: skip


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "X3D":
    """The registry's constructor."""
    return X3D(config, classes, (3, *preprocess.size), frames)


class X3D(PooledNet):
    """Clip model: (B, 3, T, H, W) -> logits (B, K) from fc1, a wide layer on the mean of the last maps."""

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__(config, classes, frame, frames)
        gamma_w = WIDEN * config.width
        channels = _rounded(STAGES[0] * gamma_w)
        self.stem = nn.Sequential(
            nn.Conv3d(3, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.Conv3d(channels, channels, (5, 1, 1), 1, (2, 0, 0), groups=channels, bias=False),
            nn.BatchNorm3d(channels), nn.ReLU(True),
        )  # fmt: skip
        self.depths = [math.ceil(count * config.depth_factor) for count in BLOCKS]
        inner = 0
        for number, (base, depth) in enumerate(zip(STAGES, self.depths, strict=True), 1):
            wide = _rounded(base * gamma_w)
            inner = int(wide * config.bottleneck)
            blocks = []
            for index in range(depth):
                blocks.append(_Residual(channels, inner, wide, 1 if index else 2, gated=index % 2 == 0))
                channels = wide
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.conv5 = nn.Sequential(nn.Conv3d(channels, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU(True))
        hidden = max(8, round(HIDDEN * min(1.0, config.width)))
        self.fc1 = nn.Conv3d(inner, hidden, 1, bias=False)
        # A channelwise kernel sees one channel: fan_in is its 27 places, and fan_out would count all channels.
        self._finish(inner, "fan_in", hidden)
        for module in self.modules():
            if isinstance(module, _Residual):  # or 26 or 55 sums explode where norms do not follow the batch
                nn.init.zeros_(module.reduce[1].weight)  # type: ignore[arg-type]

    def layers(self) -> list[str]:
        """Stem, the residual blocks, conv5, fc1, head."""
        blocks = [f"stage{number}.{index}" for number, depth in enumerate(self.depths, 1) for index in range(depth)]
        return ["stem", *blocks, "conv5", "fc1", "head"]

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Maps (B, 432, T, H / 32, W / 32), of conv5."""
        x_BCTHW: Tensor = self.stem(clip_BCTHW)
        for number in range(1, len(STAGES) + 1):
            x_BCTHW = self.get_submodule(f"stage{number}")(x_BCTHW)
        maps_BCTHW: Tensor = self.conv5(x_BCTHW)
        return maps_BCTHW

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """fc1 after its ReLU (B, D)."""
        pooled_BC111 = self.forward_features(clip_BCTHW).mean((2, 3, 4), keepdim=True)
        return functional.relu(self.fc1(pooled_BC111)).flatten(1)


class _Residual(nn.Module):
    """Widened by 1x1x1, channelwise 3x3x3, gate and swish, narrowed by 1x1x1; and the way around them."""

    def __init__(self, channels: int, inner: int, wide: int, stride: int, gated: bool) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv3d(channels, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU(True))
        steps = (1, stride, stride)
        self.channelwise = nn.Sequential(
            nn.Conv3d(inner, inner, 3, steps, 1, groups=inner, bias=False), nn.BatchNorm3d(inner)
        )
        self.gate = _Gate(inner) if gated else nn.Identity()
        self.reduce = nn.Sequential(nn.Conv3d(inner, wide, 1, bias=False), nn.BatchNorm3d(wide))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != wide:
            norm = [nn.BatchNorm3d(wide)] if channels != wide else []  # the published nets have none in stage 1
            self.downsample = nn.Sequential(nn.Conv3d(channels, wide, 1, steps, bias=False), *norm)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H / stride, W / stride)."""
        around = x_BCTHW if self.downsample is None else self.downsample(x_BCTHW)
        inner_BCTHW = functional.silu(self.gate(self.channelwise(self.expand(x_BCTHW))))
        return functional.relu(self.reduce(inner_BCTHW) + around)


class _Gate(nn.Module):
    """Squeeze-and-excitation: scales each channel by what the means of all say (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = _rounded(channels * SQUEEZE)
        self.squeeze = nn.Conv3d(channels, few, 1)
        self.excite = nn.Conv3d(few, channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        mean_BC111 = x_BCTHW.mean((2, 3, 4), keepdim=True)
        scale_BC111: Tensor = self.excite(functional.relu(self.squeeze(mean_BC111))).sigmoid()
        return x_BCTHW * scale_BC111


def published_name(name: str) -> str:
    """What pytorchvideo calls it: ``stage2.10.reduce.1.bias`` -> ``blocks.2.res_blocks.10.branch2.norm_c.bias``."""
    layer, _, leaf = name.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{leaf}"
    stage, index, part = layer.split(".", 2)
    return f"blocks.{stage.removeprefix('stage')}.res_blocks.{index}.{_PARTS[part]}.{leaf}"


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, one more if that loses over a tenth."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8
