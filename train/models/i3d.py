"""I3D: Inception-v1 inflated to space-time (Carreira and Zisserman 2017, arXiv:1705.07750), RGB stream.

Layer names are torchvision's ``googlenet``, so that its 2-D weights inflate: each kernel is repeated along time and
divided by its length. Time is padded by repeating the first and the last frame, space by zeros: then a video that
never changes gives at every time exactly the answer of the 2-D net for its picture (the paper's boring video).
Shapes: B batch, T frames, H, W picture, C channels, D width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.pooled import PooledNet

__all__ = ["I3D", "inflate", "make"]

#: name -> channels of: 1x1; 1x1 and 3x3x3; 1x1 and 3x3x3; pooling and 1x1.
INCEPTION = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
STEM = ("conv1", "conv2", "conv3")
#: layer -> (kernel, stride) in (time, space) of the pooling after it.
POOLS = {
    "conv1": ((1, 3), (1, 2)),
    "conv3": ((1, 3), (1, 2)),
    "inception3b": ((3, 3), (2, 2)),
    "inception4e": ((2, 2), (2, 2)),
}


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "I3D":
    """The registry's constructor."""
    return I3D(config, classes, (3, *preprocess.size), frames)


class I3D(PooledNet):
    """Clip model: (B, 3, T, H, W) -> logits (B, K) from the mean of the last maps."""

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__(config, classes, frame, frames)
        narrow, wide = _scaled(64, config.width), _scaled(192, config.width)
        self.conv1 = _Convolution(3, narrow, 7, 2)
        self.conv2 = _Convolution(narrow, narrow, 1)
        self.conv3 = _Convolution(narrow, wide, 3)
        channels = wide
        for name, counts in INCEPTION.items():
            block = _Inception(channels, tuple(_scaled(count, config.width) for count in counts))
            self.add_module(name, block)
            channels = block.channels
        self._finish(channels, "fan_in")

    def layers(self) -> list[str]:
        """Stem convolutions, Inception blocks, head."""
        return [*STEM, *INCEPTION, "head"]

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Maps (B, 1024, T / 8, H / 32, W / 32)."""
        x_BCTHW = clip_BCTHW
        for name in (*STEM, *INCEPTION):
            x_BCTHW = self.get_submodule(name)(x_BCTHW)
            if name in POOLS:
                x_BCTHW = _pool(x_BCTHW, *POOLS[name])
        return x_BCTHW


class _Convolution(nn.Module):
    """Convolution, batch norm, ReLU; time is padded by its end frames."""

    def __init__(self, channels: int, wide: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.conv = nn.Conv3d(channels, wide, kernel, stride, (0, self.reach, self.reach), bias=False)
        self.bn = nn.BatchNorm3d(wide, eps=0.001)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T / stride, H / stride, W / stride)."""
        if self.reach:
            x_BCTHW = functional.pad(x_BCTHW, (0, 0, 0, 0, self.reach, self.reach), mode="replicate")
        return functional.relu(self.bn(self.conv(x_BCTHW)))


class _Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = counts
        self.channels = one + three + five + pooled
        self.branch1 = _Convolution(channels, one, 1)
        self.branch2 = nn.Sequential(_Convolution(channels, reduce3, 1), _Convolution(reduce3, three, 3))
        self.branch3 = nn.Sequential(_Convolution(channels, reduce5, 1), _Convolution(reduce5, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool3d(3, 1, 1), _Convolution(channels, pooled, 1))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W)."""
        return torch.cat([b(x_BCTHW) for b in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


def inflate(model: I3D, pictures: dict[str, Tensor]) -> None:
    """Fill the net with the weights of a 2-D GoogLeNet (torchvision's names).

    The classifier is taken when it has as many classes; auxiliary classifiers are left out.

    Raises:
        UserError: a weight is absent or has another shape.
    """
    state = model.state_dict()
    for name, own in state.items():
        source = name.replace("head.", "fc.") if name.startswith("head.") else name
        given = pictures.get(source)
        if given is not None and given.ndim == 4:
            given = given[:, :, None].expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
        if given is not None and given.shape == own.shape:
            state[name] = given
        elif not name.startswith("head.") and not name.endswith("num_batches_tracked"):
            what = "is absent" if given is None else f"has shape {tuple(pictures[source].shape)}"
            raise UserError(f"these 2-D weights are no GoogLeNet of this width: {source} {what}")
    model.load_state_dict(state)


def _pool(x_BCTHW: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Maximum over (time, space) windows; incomplete windows at the end count, as in the 2-D net."""
    sizes = zip((kernel[0], kernel[1], kernel[1]), x_BCTHW.shape[2:], strict=True)
    windows = [min(wanted, size) for wanted, size in sizes]  # OpenVINO refuses windows larger than a small map
    return functional.max_pool3d(x_BCTHW, windows, (stride[0], stride[1], stride[1]), ceil_mode=True)


def _scaled(channels: int, width: float) -> int:
    return max(4, round(channels * width))
