"""Clips decoded on demand: a source of batches for data that memory cannot hold.

Each draw is a function of (seed, index) alone, whatever else is in the batch, so two processes that share a batch
see what one would. A broken video is replaced by the next readable one of its class; who is broken is a property of
the file, so the replacement is the same everywhere. Shapes: B batch, V views, T pictures, H, W, 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import note
from toolkit.video import Span
from train.data.batch import Batch
from train.data.decode import Timeline
from train.data.index import Dataset
from train.data.opening import Opened, open_clip
from train.data.targets import Boxes, Targets, boxes_of, pad_boxes

__all__ = ["VideoSource", "window_starts"]

#: Windows further apart are decoded one by one, each from its own key frame; nearer ones in one go.
_APART_S = 4.0
#: Before so many videos were seen, their share of broken ones says little.
_FEW = 20
#: So many broken ones, if they are more than their share of all videos, end the search for a good one.
_MANY = 100


def window_starts(ticks: int, length: int, views: int, rng: np.random.Generator | None) -> list[int]:
    """Where ``views`` windows of ``length`` begin in a clip of ``ticks`` pictures: drawn, or spread evenly."""
    room = max(0, ticks - length)
    if rng is not None:
        return [int(start) for start in rng.integers(0, room + 1, views)]
    return [room // 2] if views == 1 else [round(start) for start in np.linspace(0, room, views)]


@dataclass(frozen=True, slots=True)
class _Met:
    """What is known of the files when a batch is drawn, and what was met on the way."""

    known: Mapping[int, Timeline]
    broken: dict[int, str] = field(default_factory=dict)
    timelines: dict[int, Timeline] = field(default_factory=dict)


class VideoSource:
    """The clips of one split, decoded when they are asked for.

    With ``random`` each view is a window of ``frames`` pictures anywhere in its clip (``stride`` takes every n-th
    picture); otherwise the central one, or several spread evenly. A clip that is too short repeats its last picture.
    """

    workers = True  # worth decoding in processes of its own

    def __init__(
        self, data: Dataset, split: str, preprocess: Preprocess, frames: int, *, random: bool = True, stride: int = 1,
        broken_share: float = 0.2, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.clips = data.split(split)
        self.names = tuple(clip.name for clip in self.clips)
        self.targets = Targets.of(data, self.clips)
        self.preprocess, self.frames, self.stride, self.random = preprocess, frames, stride, random
        self._labels, self._root, self._share, self._device = data.labels, data.root, broken_share, device
        self._boxed = any(clip.annotated for clip in self.clips)
        self._timelines: dict[int, Timeline] = {}
        self._reasons: dict[int, str] = {}  # what this process found broken
        # What this process was told of, of all that was met: only of that can a share be taken.
        self._told: dict[int, str] = {}
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def broken(self) -> dict[str, str]:
        """Names of the broken videos that this process has met or was told of, and what is wrong with each."""
        return {self.names[index]: reason for index, reason in self._told.items()}

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """Clips of the videos at ``indices``; where a video is broken, ``Batch.indices`` says which took its place.

        Raises:
            UserError: more than ``broken_share`` of the videos are broken.
        """
        drawn = self.draw(indices, seed, views)
        self.judge(drawn)
        return drawn

    def known(self, indices: Sequence[int]) -> dict[int, Timeline]:
        """The timelines of these videos that were read before."""
        return {index: self._timelines[index] for index in indices if index in self._timelines}

    def shape(self, videos: int, views: int) -> tuple[int, ...]:
        """The shape of the pictures of so many videos: (B, V, T, H, W, 3)."""
        return (videos, views, self.frames, *self.preprocess.size, 3)

    def draw(
        self, indices: Sequence[int], seed: int, views: int = 1, known: Mapping[int, Timeline] | None = None,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> Batch:  # fmt: skip
        """As :meth:`batch`, but the share of broken videos is for :meth:`judge` to say.

        ``out``, uint8 of :meth:`shape`, is where to put the pictures.

        Raises:
            UserError: no video at all can be read.
        """
        pictures = np.empty(self.shape(len(indices), views), np.uint8) if out is None else out
        used, boxes, met = np.empty(len(indices), np.int64), [], _Met(self._timelines if known is None else known)
        for row, index in enumerate(indices):
            used[row], found = self._draw(int(index), seed, pictures[row], met)
            boxes.append(found)
        corners, classes = pad_boxes(boxes) if self._boxed else (None, None)
        return Batch(
            torch.from_numpy(pictures), self.targets.labels_at(used), torch.from_numpy(used),
            self.targets.meta_at(used), corners, classes, met.broken, met.timelines,
        )  # fmt: skip

    def judge(self, batch: Batch) -> None:
        """Count the videos that a batch has met, whichever processes made it; each broken one is named once.

        Their timelines are kept here and travel with the requests, so each is read once, not once in every worker.

        Raises:
            UserError: more than ``broken_share`` of the videos met so far are broken.
        """
        self._timelines.update(batch.timelines)
        self._seen.update(batch.indices.tolist())
        for place, reason in batch.left_out.items():
            if place in self._told:
                continue
            self._told[place] = reason
            self._seen.add(place)
            note(f"left out a broken video: {reason}")
            broken, seen = len(self._told), len(self._seen)
            if broken > self._share * max(seen, min(len(self), _FEW)):
                raise UserError(f"data {self._root}: {broken} of {seen} videos read so far are broken; the first: "
                                f"{next(iter(self._told.values()))}")  # fmt: skip

    def _draw(self, index: int, seed: int, out: npt.NDArray[np.uint8], met: "_Met") -> tuple[int, list[Boxes]]:
        """Fill ``out`` (V, T, H, W, 3) from the clip at ``index``, or from the next good one."""
        for place in self._candidates(index):
            if place not in self._reasons:
                try:
                    return place, self._clip(place, seed, out, met)
                except UserError as error:
                    self._reasons[place] = str(error)
            met.broken[place] = self._reasons[place]
            if len(self._reasons) > max(_MANY, self._share * len(self)):
                break  # too much is broken whatever others have met: no need to look through all of it
        raise UserError(f"data {self._root}: {len(self._reasons)} of {len(self)} videos cannot be read; the first: "
                        f"{next(iter(self._reasons.values()))}")  # fmt: skip

    def _candidates(self, index: int) -> Iterator[int]:
        """The clip itself, then those after it: of its class first, of any class last."""
        yield index
        label, after = self.clips[index].label, [(index + step) % len(self) for step in range(1, len(self))]
        yield from (place for place in after if self.clips[place].label == label)
        yield from (place for place in after if self.clips[place].label != label)

    def _clip(self, place: int, seed: int, out: npt.NDArray[np.uint8], met: "_Met") -> list[Boxes]:
        """Decode the windows of one clip into ``out``; the boxes of the first view come back."""
        clip, length = self.clips[place], (self.frames - 1) * self.stride + 1
        rng = np.random.default_rng([seed, place]) if self.random else None
        with open_clip(clip, met.known.get(place), self._device) as video:
            if video.timeline is not None and place not in met.known:
                met.timelines[place] = video.timeline
            total = video.ticks(self.preprocess.fps, clip.span)
            starts = window_starts(total, length, len(out), rng)
            wanted = [np.minimum(np.arange(start, start + length, self.stride), total - 1) for start in starts]
            size, numbers = self._fill(video, clip.span, wanted, out)
        if not self._boxed:
            return []
        return boxes_of(clip, self._labels, [numbers[tick] for tick in wanted[0].tolist()], size, self.preprocess)

    def _fill(
        self, video: Opened, span: Span, wanted: list[npt.NDArray[np.int64]], out: npt.NDArray[np.uint8]
    ) -> tuple[tuple[int, int], dict[int, int]]:
        """Put the wanted ticks of each view into ``out``; the video's size, and each tick's frame number."""
        runs = _runs(np.unique(np.concatenate(wanted)), _APART_S * self.preprocess.fps)
        if len(wanted) == len(runs) == 1:  # one view in one go: into its place at once
            count = len(runs[0])
            decoded = video.pictures(runs[0], self.preprocess, span, out[0, :count])
            out[0, count:] = out[0, count - 1]
            return decoded.size, dict(zip(runs[0], decoded.frames.tolist(), strict=True))
        found: dict[int, npt.NDArray[np.uint8]] = {}
        numbers: dict[int, int] = {}
        for run in runs:
            decoded = video.pictures(run, self.preprocess, span)
            found.update(zip(run, decoded.pictures, strict=True))
            numbers.update(zip(run, decoded.frames.tolist(), strict=True))
        for view, ticks in enumerate(wanted):
            for step, tick in enumerate(ticks.tolist()):
                out[view, step] = found[tick]
        return decoded.size, numbers


def _runs(ticks: npt.NDArray[np.int64], apart: float) -> list[list[int]]:
    """Rising ticks, cut where they are more than ``apart`` from each other."""
    cuts = np.flatnonzero(np.diff(ticks) > apart) + 1
    return [run.tolist() for run in np.split(ticks, cuts)]
