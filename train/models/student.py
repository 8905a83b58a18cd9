"""The streaming student: a MobileNetV2-style 2-D backbone whose residual blocks look back in time.

One set of weights, two forms. The *clip form* sees all T frames of a clip at once and is used for training;
the *step form* sees one frame and the stream state and is what devices run. They agree to rounding, because
every temporal module is causal and starts from zero state:

* online channel shift (TSM, Lin et al. 2019, arXiv:1811.08383): the first channels come from the last frame;
* causal depthwise temporal convolution: one 1x1 depthwise tap per frame of a short past.

Shapes: B batch, T time, N = B*T folded, C channels, H, W picture, K classes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from toolkit.contract import Contract, StateSpec
from toolkit.detection import DetectionSpec
from toolkit.errors import UserError
from toolkit.recipe import StudentConfig
from train.detect.head import BoxReadout, spec_of
from train.models.readout import AverageReadout, MotionReadout

__all__ = ["StreamStudent", "build_student"]

# MobileNetV2 (Sandler et al. 2018, table 2): expansion, channels, repeats, stride.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280
# Neighbouring frames differ little: unamplified, the stem would learn from their change many times slower.
GAIN = 4.0


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor`` without losing more than 10 % (the MobileNet rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: at stride 2 an even side is padded only at its far end.

    With it ImageNet weights from TFLite files answer as they do there, and LiteRT needs no padding operator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for side in (int(input.shape[3]), int(input.shape[2])):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(input, pads))


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: Callable[[], nn.Module] | None
) -> nn.Sequential:
    """Convolution, batch norm and, unless ``act`` is None, an activation: entries 0, 1 and 2."""
    if stride == 1:
        convolution = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
    else:
        convolution = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([] if act is None else [act()]))


class OnlineShift(nn.Module):
    """Replace the first ``fold`` channels by those of the previous frame. State: (B, fold, H, W)."""

    def __init__(self, channels: int, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.fold = max(1, int(channels * fraction))

    def resize(self, channels: int) -> None:
        """Follow a pruned layer: the fold is a fraction of the channels that remain."""
        self.fold = max(1, int(channels * self.fraction))

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        return [self.fold]

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame: (B, C, H, W) and the previous fold -> shifted (B, C, H, W) and this frame's fold."""
        return torch.cat([states[0], x_BCHW[:, self.fold :]], 1), [x_BCHW[:, : self.fold]]

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames: zeros enter at t = 0."""
        past = nn.functional.pad(x_BTCHW[:, :-1, : self.fold], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([past, x_BTCHW[:, :, self.fold :]], 2)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes: what structural tracing sees."""
        return x_BCHW


class CausalTaps(nn.Module):
    """Depthwise temporal convolution over ``kernel`` frames as 1x1 depthwise taps; starts as identity.

    State: ``kernel - 1`` tensors (B, C, H, W), the most recent frame first.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Conv2d(channels, channels, 1, groups=channels, bias=False) for _ in range(kernel))
        for index, tap in enumerate(self.taps):
            weight = tap.weight
            assert isinstance(weight, Tensor)
            nn.init.constant_(weight, 1.0) if index == 0 else nn.init.normal_(weight, std=0.1)

    def resize(self, channels: int) -> None:
        """Nothing to follow: the taps were pruned with their layer."""

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        first = self.taps[0]
        assert isinstance(first, nn.Conv2d)
        return [first.out_channels] * (len(self.taps) - 1)

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame and the ``kernel - 1`` before it."""
        y = self.taps[0](x_BCHW)
        for tap, past in zip(list(self.taps)[1:], states, strict=True):
            y = y + tap(past)
        return y, [x_BCHW, *states[:-1]]

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames at once."""
        batch, frames = x_BTCHW.shape[:2]
        y = self.taps[0](x_BTCHW.flatten(0, 1)).unflatten(0, (batch, frames))
        for delay, tap in enumerate(list(self.taps)[1:frames], start=1):
            past = nn.functional.pad(x_BTCHW[:, :-delay], (0, 0, 0, 0, 0, 0, delay, 0))
            y = y + tap(past.flatten(0, 1)).unflatten(0, (batch, frames))
        answer: Tensor = y
        return answer

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes."""
        y: Tensor = self.taps[0](x_BCHW)
        for tap in list(self.taps)[1:]:
            y = y + tap(x_BCHW)
        return y


class LookBack(nn.Module):
    """The stem's input: the frame, or the frame and its change since the last one. State: the last frame."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def state_channels(self) -> list[int]:
        """Channels of each state tensor."""
        return [3] if self.enabled else []

    def step(self, x_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One frame -> (B, 3 or 6, H, W) and the frame to remember."""
        if not self.enabled:
            return x_BCHW, []
        return torch.cat([x_BCHW, _change(x_BCHW, states[0])], 1), [x_BCHW]

    def clip(self, x_BTCHW: Tensor) -> Tensor:
        """All frames; before the first there is a zero frame."""
        if not self.enabled:
            return x_BTCHW
        past = nn.functional.pad(x_BTCHW[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([x_BTCHW, _change(x_BTCHW, past)], 2)

    def still(self, x_BCHW: Tensor) -> Tensor:
        """The answer for a picture that never changes."""
        return torch.cat([x_BCHW, torch.zeros_like(x_BCHW)], 1) if self.enabled else x_BCHW


def _change(now: Tensor, past: Tensor) -> Tensor:
    """Amplified change, cut to the frame's own range so that both keep fine int8 steps where they are joined."""
    return (GAIN * (now - past)).clamp(-1.0, 1.0)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2), with an optional temporal module on the branch's input."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expand: int,
        act: Callable[[], nn.Module],
        temporal: nn.Module | None,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [] if expand == 1 else [conv_bn(inputs, hidden, 1, 1, 1, act)]
        layers += [conv_bn(hidden, hidden, 3, stride, hidden, act), conv_bn(hidden, outputs, 1, 1, 1, None)]
        self.branch = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs
        self.temporal = temporal
        self.stride = stride

    def forward(self, x_NCHW: Tensor, batch: int, frames: int) -> Tensor:
        """Clip form. A call of the block itself, so that it can be compiled, recomputed or sharded as one."""
        if self.temporal is None:
            return self.merge(x_NCHW, x_NCHW)
        x_BTCHW: Tensor = x_NCHW.unflatten(0, (batch, frames))  # type: ignore[no-untyped-call]
        return self.merge(x_NCHW, self.temporal.clip(x_BTCHW).flatten(0, 1))  # type: ignore[operator]

    def merge(self, x: Tensor, looked: Tensor) -> Tensor:
        """Branch over the temporal module's output, plus the untouched input where shapes allow."""
        y: Tensor = self.branch(looked)
        return x + y if self.residual else y


class StreamStudent(nn.Module):
    """The student. Build with :func:`build_student`; ``frame`` is (3, H, W), ``classes`` K."""

    def __init__(self, config: StudentConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frame, self.frames = config, classes, frame, frames
        act: Callable[[], nn.Module] = (
            (lambda: nn.ReLU6()) if config.activation == "relu6" else (lambda: nn.Hardswish())
        )
        channels = round_channels(STEM * config.width)
        self.look = LookBack(config.look_back)
        self.stem = conv_bn(6 if config.look_back else 3, channels, 3, 2, 1, act)
        blocks: list[InvertedResidual] = []
        for expand, base, repeats, stride in STAGES:
            outputs = round_channels(base * config.width)
            for index in range(max(1, math.ceil(repeats * config.depth))):
                step = stride if index == 0 else 1
                looks = step == 1 and channels == outputs and expand > 1
                blocks.append(
                    InvertedResidual(
                        channels, outputs, step, expand, act, _temporal(config, channels) if looks else None
                    )
                )
                channels = outputs
        self.blocks = nn.ModuleList(blocks[: config.blocks])
        self.readout = self._readout(channels, act)

    def _readout(self, channels: int, act: Callable[[], nn.Module]) -> AverageReadout | MotionReadout | BoxReadout:
        config = self.config
        if config.blocks is not None:
            channels = self._outputs(config.blocks)
        if config.readout == "boxes":
            memory = CausalTaps(config.boxes.channels, config.boxes.kernel) if config.boxes.kernel > 1 else None
            return BoxReadout(channels, self.classes, config.boxes, memory)
        if config.readout == "motion":
            return MotionReadout(channels, self.classes, config.lags, config.bends, config.dropout)
        last = LAST if config.width >= 1 else round_channels(LAST * config.width)
        return AverageReadout(conv_bn(channels, last, 1, 1, 1, act), last, self.classes, config.dropout)

    def _outputs(self, count: int) -> int:
        """Channels after the first ``count`` blocks."""
        block = list(self._blocks())[min(count, len(self.blocks)) - 1]
        project = block.branch[-1]
        assert isinstance(project, nn.Sequential)
        convolution = project[0]
        assert isinstance(convolution, nn.Conv2d)
        return convolution.out_channels

    def _blocks(self) -> Iterator[InvertedResidual]:
        for block in self.blocks:
            assert isinstance(block, InvertedResidual)
            yield block

    def train(self, mode: bool = True) -> Self:
        """As usual, except that pretrained batch norms keep their statistics: small batches would ruin them."""
        super().train(mode)
        if self.config.pretrained is not None:
            fresh = set(self.readout.modules()) if isinstance(self.readout, BoxReadout) else set()
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d) and module not in fresh:
                    module.eval()
        return self

    def _memories(self) -> Iterator[tuple[nn.Module, list[int]]]:
        """Every module with stream state in order of the graph, with its (H, W)."""
        yield self.look, list(self.frame[1:])
        size = [math.ceil(edge / 2) for edge in self.frame[1:]]
        for block in self._blocks():
            if block.temporal is not None:
                yield block.temporal, size
            size = [math.ceil(edge / block.stride) for edge in size]
        yield self.readout, size

    def _detection(self) -> DetectionSpec | None:
        """How a detector's answer is read."""
        if not isinstance(self.readout, BoxReadout):
            return None
        rows, cols = [math.ceil(edge / 2) for edge in self.frame[1:]]
        stride = 2
        for block in self._blocks():
            rows, cols, stride = math.ceil(rows / block.stride), math.ceil(cols / block.stride), stride * block.stride
        return spec_of((rows, cols), stride, self.config.boxes)

    def contract(self) -> Contract:
        """Names and shapes of the step form, read off the (possibly pruned) weights."""
        shapes = [
            (channels, *size)
            for memory, size in self._memories()
            for channels in memory.state_channels()  # type: ignore[operator]
        ]
        states = tuple(StateSpec(name=f"state_{index:02d}", shape=shape) for index, shape in enumerate(shapes))
        warmup = self.readout.depth if isinstance(self.readout, MotionReadout) else int(self.config.look_back)
        return Contract(
            kind="stream", frame=self.frame, classes=self.classes, frames=self.frames, warmup=warmup, states=states,
            detection=self._detection(),
        )  # fmt: skip

    def step(self, frame_BCHW: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Step form: frame (B, 3, H, W) and states -> logits (B, K), or a detector's answer, and the next states."""
        first = len(self.look.state_channels())
        seen, out = self.look.step(frame_BCHW, states[:first])
        x, rest = self.stem(seen), list(states[first:])
        for block in self._blocks():
            looked = x
            if block.temporal is not None:
                count = len(block.temporal.state_channels())  # type: ignore[operator]
                looked, following = block.temporal.step(x, rest[:count])  # type: ignore[operator]
                rest, out = rest[count:], out + following
            x = block.merge(x, looked)
        logits, following = self.readout.step(x, rest)
        return logits, out + following

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Clip form: (B, T, 3, H, W) -> answers of every frame (B, T, K), equal to T steps from zero state."""
        batch, frames = clip_BTCHW.shape[:2]
        x = self.stem(self.look.clip(clip_BTCHW).flatten(0, 1))
        for block in self._blocks():
            x = block(x, batch, frames)
        return self.readout.clip(x.unflatten(0, (batch, frames)))

    def backbone(self, frames_NCHW: Tensor) -> Tensor:
        """The last feature maps (N, C, h, w) of frames seen one by one, for students without temporal modules.

        Raises:
            UserError: this student's features depend on earlier frames.
        """
        if self.config.look_back or any(block.temporal is not None for block in self._blocks()):
            raise UserError('frozen features of single frames need student.temporal = "none" and no look_back')
        x: Tensor = self.stem(frames_NCHW)
        for block in self._blocks():
            x = block.merge(x, x)
        return x

    def still(self, frame_BCHW: Tensor) -> Tensor:
        """Logits (B, K) as if the picture had always been there: a plain 2-D net, for structural tracing."""
        x = self.stem(self.look.still(frame_BCHW))
        for block in self._blocks():
            x = block.merge(x, x if block.temporal is None else block.temporal.still(x))  # type: ignore[operator]
        return self.readout.still(x)


def _temporal(config: StudentConfig, channels: int) -> nn.Module | None:
    if config.temporal == "shift":
        return OnlineShift(channels, config.shift_fraction)
    return CausalTaps(channels, config.kernel) if config.temporal == "conv" else None


def build_student(config: StudentConfig, classes: int, frame: tuple[int, int, int], frames: int) -> StreamStudent:
    """Make a student with fresh weights (He initialisation, as in MobileNet)."""
    model = StreamStudent(config, classes, frame, frames)
    for module in model.modules():
        # Only a detector's output layers have a bias, and they bring their own initialisation.
        if isinstance(module, nn.Conv2d) and module.groups != module.in_channels and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
