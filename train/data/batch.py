"""What a training step is given: clips of some videos, with whatever is known about them.

A source is random access and a pure function: the same indices and seed give the same batch, in any process and at
any time. That is what makes a killed run continue exactly, and two processes equal one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from train.data.decode import Timeline

__all__ = ["Batch", "Decoding", "Source", "sent"]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from pinned memory a copy to a GPU keeps neither side waiting."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """B videos, V clips (views) of each.

    pictures: uint8 (B, V, T, H, W, 3) RGB. labels: int64 (B,) class indices, or float32 (B, K) multi-hot.
    indices: int64 (B,) places in the source. meta: int64 (B,) class indices of metadata columns by name, -1 where
    unknown. boxes: float32 (B, T, M, 4) as x1 y1 x2 y2 in pixels of the picture, with box_labels: int64 (B, T, M),
    -1 where there is no box. left_out: places of broken videos met on the way to this batch, and what is wrong.
    timelines: of those videos, by place, whose timeline was not known before.
    shares: videos in the parts of all processes at this moment, empty in a single process.
    """

    pictures: Tensor
    labels: Tensor
    indices: Tensor
    meta: dict[str, Tensor] = field(default_factory=dict)
    boxes: Tensor | None = None
    box_labels: Tensor | None = None
    left_out: dict[int, str] = field(default_factory=dict)
    timelines: dict[int, "Timeline"] = field(default_factory=dict)
    shares: tuple[int, ...] = ()

    @property
    def first(self) -> Tensor:
        """The first view, uint8 (B, T, H, W, 3)."""
        return self.pictures[:, 0]


class Source(Protocol):
    """Random access to N videos."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """The videos at ``indices``; ``seed`` decides where in each video its clips are cut."""
        ...


@runtime_checkable
class Decoding(Source, Protocol):
    """A source whose batches are worth making in processes of their own, of which none meets every video.

    So workers ``draw``, and each process that trains judges what all of them met and remembers what was learnt of
    the files: ``batch`` is both in one.
    """

    def known(self, indices: Sequence[int]) -> Mapping[int, "Timeline"]:
        """What is known of these files, for the worker that will draw from them."""
        ...

    def shape(self, videos: int, views: int) -> tuple[int, ...]:
        """The shape of the pictures of so many videos."""
        ...

    def draw(
        self, indices: Sequence[int], seed: int, views: int = 1, known: Mapping[int, "Timeline"] | None = None,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> Batch:  # fmt: skip
        """As ``batch``, however much is broken; ``out`` is where to put the pictures."""
        ...

    def judge(self, batch: Batch) -> None:
        """Count and remember what ``batch`` met.

        Raises:
            UserError: too much of what was met so far is broken.
        """
        ...
