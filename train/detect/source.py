"""Boxed footage as a source of batches: short windows of decoded videos, and their augmentation.

All pictures of a split are held as uint8, so that an epoch costs no decoding. Shapes: B batch, T frames, M boxes,
H, W picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.boxed import BoxedPicture, read_boxed
from toolkit.coco import Footage, FrameBoxes
from toolkit.errors import UserError
from toolkit.preprocess import FrameSampler, Preprocess
from toolkit.progress import track
from toolkit.video import extent
from train.data.batch import Batch, sent
from train.data.clips import normalise

__all__ = ["BoxedVideo", "Windows", "augment", "count_windows", "load_boxed", "padded"]


@dataclass(frozen=True, slots=True)
class BoxedVideo:
    """pictures: uint8 RGB (T, H, W, 3); truth: the boxes of each, None where not annotated; name: the file's."""

    pictures: npt.NDArray[np.uint8]
    truth: tuple[FrameBoxes | None, ...]
    name: str


def load_boxed(
    footage: Sequence[Footage], preprocess: Preprocess, title: str = "decode",
    teach: Callable[[BoxedPicture], FrameBoxes | None] = lambda seen: seen.truth,
) -> list[BoxedVideo]:  # fmt: skip
    """Decode everything; ``teach`` says what is to be learned from a picture, by default its annotation.

    Raises:
        UserError: a file cannot be read or does not fit its annotations.
    """
    videos = []
    for part in track(footage, title):
        seen = list(read_boxed(part, preprocess))
        videos.append(BoxedVideo(np.stack([s.picture for s in seen]), tuple(teach(s) for s in seen), part.path.name))
    return videos


def padded(frames: Sequence[FrameBoxes | None]) -> tuple[Tensor, Tensor]:
    """Boxes (T, M, 4) and labels (T, M) of T frames; -1 is no box, -2 a frame without annotation."""
    most = max((len(frame.labels) for frame in frames if frame is not None), default=0)
    most = max(most, 1)
    boxes, labels = torch.zeros(len(frames), most, 4), torch.full((len(frames), most), -1)
    for index, frame in enumerate(frames):
        if frame is None:
            labels[index] = -2
            continue
        count = len(frame.labels)
        boxes[index, :count] = torch.from_numpy(frame.boxes)
        labels[index, :count] = torch.from_numpy(frame.labels)
    return boxes, labels


def count_windows(footage: Sequence[Footage], preprocess: Preprocess, frames: int) -> int:
    """How many windows training will have, told from the files' headers and annotations; nothing is decoded.

    Raises:
        UserError: a file cannot be opened, or no annotated frame is left.
    """
    videos = []
    for part in footage:
        count, fps = (1, 1.0) if part.still else extent(part.path)
        sampler = FrameSampler(preprocess.fps)
        truth = [
            part.frames.get(index) if repeat == due - 1 else None
            for index in range(count) if (due := sampler.due(index / fps)) for repeat in range(due)
        ]  # fmt: skip
        videos.append(BoxedVideo(np.empty((len(truth), 0, 0, 3), np.uint8), tuple(truth), part.path.name))
    return len(Windows(videos, frames))


class Windows:
    """Windows of ``frames`` steps cut from videos; the seed moves each by up to half a window.

    Windows with a rare class come several times an epoch: repeat-factor sampling (Gupta et al. 2019, arXiv:1908.03195).
    """

    def __init__(self, videos: Sequence[BoxedVideo], frames: int) -> None:
        self._videos, self._frames = list(videos), frames
        starts = [
            (index, start)
            for index, video in enumerate(self._videos)
            for start in range(0, max(1, len(video.pictures) - frames + 1), frames)
        ]
        self._starts = _repeated(starts, [self._classes(index, start) for index, start in starts])
        if not any(frame is not None for video in self._videos for frame in video.truth):
            raise UserError("no annotated frame is left to train on: check fps and frame_index of the annotations")

    def _classes(self, index: int, start: int) -> set[int]:
        """The classes seen in one window."""
        window = self._videos[index].truth[start : start + self._frames]
        return {label for frame in window if frame is not None for label in frame.labels.tolist()}

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """The windows at ``indices``; labels are unused and zero."""
        rng = np.random.default_rng(seed)
        half = self._frames // 2
        shifts = rng.integers(-half, half + 1, size=len(indices))
        parts = [self._cut(index, int(shift)) for index, shift in zip(indices, shifts, strict=True)]
        truth = [padded(frames) for _, frames in parts]
        most = max(labels.shape[1] for _, labels in truth)
        boxes = torch.stack([functional.pad(b, (0, 0, 0, most - b.shape[1])) for b, _ in truth])
        # Padding a frame that is not annotated must keep it so: its first label says -2.
        labels = torch.stack([functional.pad(la, (0, most - la.shape[1]), value=-1) for _, la in truth])
        pictures = torch.from_numpy(np.stack([pictures for pictures, _ in parts]))[:, None]
        return Batch(
            pictures.expand(-1, views, -1, -1, -1, -1), torch.zeros(len(parts), dtype=torch.int64),
            torch.as_tensor(list(indices)), boxes=boxes, box_labels=labels,
        )  # fmt: skip

    def _cut(self, index: int, shift: int) -> tuple[npt.NDArray[np.uint8], list[FrameBoxes | None]]:
        """Pictures (T, H, W, 3) and truth of one window."""
        number, places = self.places(index, shift)
        video = self._videos[number]
        return video.pictures[places], [video.truth[place] for place in places]

    def places(self, index: int, shift: int) -> tuple[int, list[int]]:
        """The video of a window and its frames there; a shorter video repeats its last frame."""
        number, start = self._starts[index]
        count = len(self._videos[number].pictures)
        start = min(max(0, start + shift), max(0, count - self._frames))
        return number, [min(start + offset, count - 1) for offset in range(self._frames)]


def _repeated(starts: list[tuple[int, int]], classes: list[set[int]]) -> list[tuple[int, int]]:
    """Each window as often as its rarest class asks for: sqrt(fair share / share of windows with it), at least once."""
    kinds = set().union(*classes)
    share = {kind: sum(kind in seen for seen in classes) / len(classes) for kind in kinds}
    factor = {kind: max(1, round((1 / (len(kinds) * share[kind])) ** 0.5)) for kind in kinds}
    times = [max((factor[kind] for kind in seen), default=1) for seen in classes]
    return [start for start, count in zip(starts, times, strict=True) for _ in range(count)]


def augment(
    batch: Batch, preprocess: Preprocess, mirror: bool, zoom: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One draw per clip: mirror, zoom into a random place, light and colour; boxes follow and lost ones become -1.

    Returns clips float32 (B, T, 3, H, W), boxes (B, T, M, 4) and labels (B, T, M).
    """
    assert batch.boxes is not None
    assert batch.box_labels is not None
    clips, boxes, labels = normalise(batch.first, preprocess), batch.boxes, batch.box_labels
    count, frames, channels, height, width = clips.shape
    scale = torch.empty(count).uniform_(zoom, 1.0, generator=generator)
    shift = torch.empty(2, count).uniform_(-1, 1, generator=generator) * (1 - scale)
    flip = torch.where((torch.rand(count, generator=generator) < 0.5) & mirror, -1.0, 1.0)
    zero = torch.zeros(count)
    theta = torch.stack(
        [torch.stack([scale * flip, zero, shift[0]], 1), torch.stack([zero, scale, shift[1]], 1)], 1
    )  # fmt: skip
    device = clips.device  # draws are made on the CPU, the same on every device
    grid = functional.affine_grid(sent(theta, device), [count, 1, height, width], align_corners=False)
    folded = clips.reshape(count, frames * channels, height, width)
    clips = functional.grid_sample(folded, grid, align_corners=False, padding_mode="border")
    clips = clips.reshape(count, frames, channels, height, width)
    gain = sent(torch.empty(count, 1, channels, 1, 1).uniform_(0.8, 1.2, generator=generator), device)
    lift = sent(torch.empty(count, 1, channels, 1, 1).uniform_(-0.2, 0.2, generator=generator), device)
    draw = (sent(scale, device), sent(shift, device), sent(flip, device))
    boxes, labels = _moved(boxes, labels, draw, (height, width))
    return clips * gain + lift, boxes, labels


def _moved(
    boxes_BTM4: Tensor, labels_BTM: Tensor, draw: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Boxes under the inverse of the sampling grid; those of which less than a quarter is left are gone."""
    scale, shift, flip = (value[..., None, None] for value in draw)
    width, height = size[1], size[0]
    across = ((boxes_BTM4[..., 0::2] * 2 / width - 1) - shift[0][..., None]) / (scale * flip)[..., None]
    down = ((boxes_BTM4[..., 1::2] * 2 / height - 1) - shift[1][..., None]) / scale[..., None]
    across, down = (across.sort(-1).values + 1) * width / 2, (down + 1) * height / 2
    moved = torch.stack([across[..., 0], down[..., 0], across[..., 1], down[..., 1]], -1)
    limit = torch.tensor([width, height, width, height], dtype=moved.dtype, device=moved.device)
    cut = torch.minimum(moved.clamp(min=0), limit)
    area, left = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (moved, cut))
    lost = (labels_BTM >= 0) & (left < 0.25 * area)
    return cut, labels_BTM.masked_fill(lost, -1)
