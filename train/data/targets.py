"""What a batch says about its clips beside the pictures: labels, metadata columns, boxes.

Shapes: N clips, K classes, B batch, V views, T pictures, M boxes of the fullest picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.preprocess import Preprocess
from train.data.clip import Clip
from train.data.index import Dataset

__all__ = ["Boxes", "Targets", "boxes_of", "pad_boxes"]

_LEAST_SEEN = 0.25

#: x1 y1 x2 y2 float32 (n, 4) and class indices int64 (n,) of one picture.
Boxes = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Targets:
    """labels: int64 (N,), or float32 multi-hot (N, K); meta: int64 (N,) a column, -1 where it is empty."""

    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    meta: dict[str, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, data: Dataset, clips: Sequence[Clip]) -> "Targets":
        """Indices into the data set's labels and into its metadata's values."""
        place = {label: index for index, label in enumerate(data.labels)}
        labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
        if data.multi_label:
            labels = np.zeros((len(clips), len(place)), np.float32)
            for row, clip in enumerate(clips):
                labels[row, [place[label] for label in clip.labels]] = 1
        else:
            labels = np.asarray([place[clip.labels[0]] for clip in clips], np.int64)
        meta = {}
        for column, values in data.meta().items():
            rank = {value: index for index, value in enumerate(values)}
            meta[column] = np.asarray([rank.get(dict(clip.meta).get(column, ""), -1) for clip in clips], np.int64)
        return cls(labels, meta)

    def labels_at(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Labels of the clips at ``indices``."""
        return torch.from_numpy(self.labels[indices])

    def meta_at(self, indices: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Metadata of the clips at ``indices``."""
        return {column: torch.from_numpy(values[indices]) for column, values in self.meta.items()}


def boxes_of(
    clip: Clip, labels: Sequence[str], frames: Sequence[int], size: tuple[int, int], preprocess: Preprocess
) -> list[Boxes]:
    """The boxes of each picture, moved as its pixels were: cropped and scaled from a video of ``size`` (H, W).

    A picture whose frame was not annotated takes the boxes of the nearest annotated frame, at most half the usual
    distance between two of them away. Boxes less than a quarter of which is in the picture are left out.
    """
    annotated = np.asarray(sorted(clip.annotated))
    apart = float(np.median(np.diff(annotated))) / 2 if len(annotated) > 1 else 0.0
    by_frame: dict[int, list[tuple[tuple[float, ...], int]]] = {}
    for box in clip.boxes:
        by_frame.setdefault(box.frame, []).append((box.corners, labels.index(box.label)))
    found = []
    for frame in frames:
        nearest = int(annotated[np.abs(annotated - frame).argmin()]) if len(annotated) else -1
        rows = by_frame.get(nearest, []) if abs(nearest - frame) <= apart else []
        corners = np.asarray([row[0] for row in rows], np.float32).reshape(-1, 4)
        classes = np.asarray([row[1] for row in rows], np.int64)
        moved, keep = _moved(corners, size, preprocess)
        found.append((moved[keep], classes[keep]))
    return found


def _moved(
    corners: npt.NDArray[np.float32], size: tuple[int, int], preprocess: Preprocess
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    top, left, rows, cols = preprocess.window(size)
    scale = np.asarray([preprocess.size[1] / cols, preprocess.size[0] / rows] * 2, np.float32)
    moved = (corners - np.asarray([left, top] * 2, np.float32)) * scale
    limit = np.asarray([preprocess.size[1], preprocess.size[0]] * 2, np.float32)
    cut = np.clip(moved, 0, limit)
    area, seen = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (moved, cut))
    return cut, seen > _LEAST_SEEN * np.maximum(area, 1e-6)


def pad_boxes(rows: Sequence[Sequence[Boxes]]) -> tuple[Tensor, Tensor]:
    """B clips of T pictures -> float32 (B, T, M, 4) and int64 (B, T, M) with -1 where there is no box."""
    most = max(1, max(len(classes) for row in rows for _, classes in row))
    boxes = torch.zeros(len(rows), len(rows[0]), most, 4)
    labels = torch.full((len(rows), len(rows[0]), most), -1, dtype=torch.int64)
    for index, row in enumerate(rows):
        for place, (corners, classes) in enumerate(row):
            boxes[index, place, : len(classes)] = torch.from_numpy(corners)
            labels[index, place, : len(classes)] = torch.from_numpy(classes)
    return boxes, labels
