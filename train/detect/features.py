"""Training only the head of a student: the frozen backbone's feature maps are computed once, augmentations included.

A source like :class:`train.detect.source.Windows`, whose batches hold feature maps in place of pictures. It is for
students whose backbone sees single frames and is frozen; the head's own memory then carries the temporal context.
Shapes: B batch, T frames, M boxes, C channels, h, w feature map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.preprocess import Preprocess
from toolkit.progress import track
from toolkit.recipe import DetectionConfig
from train.data.batch import Batch
from train.data.clips import normalise
from train.detect.source import BoxedVideo, Windows, augment, padded
from train.loop import seeded
from train.models.student import StreamStudent

__all__ = ["FeatureWindows", "features_of"]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One augmentation of one video: maps (T, C, h, w), boxes (T, M, 4), labels (T, M)."""

    maps: Tensor
    boxes: Tensor
    labels: Tensor


def features_of(student: StreamStudent, frames_TCHW: Tensor) -> Tensor:
    """The backbone's maps (T, C, h, w) of normalised frames, in eval mode.

    Raises:
        UserError: the student's features depend on earlier frames.
    """
    training = student.training
    student.eval()
    with torch.no_grad():
        maps = torch.cat([student.backbone(frames_TCHW[i : i + 32]) for i in range(0, len(frames_TCHW), 32)])
    student.train(training)
    return maps


class FeatureWindows:
    """Windows of feature maps; the seed chooses the augmentation and moves the window by up to half its length."""

    def __init__(
        self, student: StreamStudent, videos: Sequence[BoxedVideo], frames: int, preprocess: Preprocess,
        config: DetectionConfig,
    ) -> None:  # fmt: skip
        self._windows, self._frames = Windows(videos, frames), frames
        self._copies: list[list[_Copy]] = []
        for number, video in enumerate(track(videos, "features")):
            self._copies.append([_copy(student, video, preprocess, config, number, k) for k in range(config.copies)])

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """As of windows of pictures, but ``pictures`` are float32 maps (B, 1, T, C, h, w)."""
        rng = np.random.default_rng(seed)
        parts = []
        for index in indices:
            number, places = self._windows.places(index, int(rng.integers(-self._frames // 2, self._frames // 2 + 1)))
            copy = self._copies[number][int(rng.integers(len(self._copies[number])))]
            parts.append((copy.maps[places], copy.boxes[places], copy.labels[places]))
        most = max(labels.shape[1] for _, _, labels in parts)
        boxes = torch.stack([functional.pad(b, (0, 0, 0, most - b.shape[1])) for _, b, _ in parts])
        labels = torch.stack([functional.pad(la, (0, most - la.shape[1]), value=-1) for _, _, la in parts])
        maps = torch.stack([maps for maps, _, _ in parts])[:, None]
        places_B = torch.as_tensor(list(indices))
        return Batch(maps, torch.zeros(len(parts), dtype=torch.int64), places_B, boxes=boxes, box_labels=labels)


def _copy(
    student: StreamStudent, video: BoxedVideo, preprocess: Preprocess, config: DetectionConfig, number: int, copy: int
) -> _Copy:
    """The first copy is the video as it is."""
    boxes, labels = padded(video.truth)
    pictures = torch.from_numpy(video.pictures)
    if copy == 0:
        return _Copy(features_of(student, normalise(pictures, preprocess)), boxes, labels)
    batch = Batch(pictures[None, None], torch.zeros(1), torch.zeros(1), boxes=boxes[None], box_labels=labels[None])
    generator = seeded(config.seed, 5, number, copy)
    clips, moved, kept = augment(batch, preprocess, config.mirror, config.zoom, generator)
    return _Copy(features_of(student, clips[0]), moved[0], kept[0])
