"""From a detector's answer to boxes: one implementation that training, evaluation and the camera share (numpy only).

A detector answers with one vector, so that every runtime carries it as it carries logits. Per level of its feature
maps stand, channels first, K class scores (before the sigmoid), 4 distances from the location to the box's left, top,
right and bottom in units of the stride, and the expected overlap with the true box (before the sigmoid): a dense,
anchor-free head (FCOS, Tian et al. 2019, arXiv:1904.01355). Boxes are left, top, right, bottom in pixels.

Shapes: N numbers of an answer, K classes, M boxes, L locations.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from toolkit.preprocess import Preprocess

__all__ = ["EVERY", "DetectionSpec", "Found", "Level", "decode", "nms", "overlaps", "to_frame", "to_picture"]

#: Boxes down to this score count towards average precision.
EVERY = 0.02

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Level(_Frozen):
    """One feature map: ``rows`` x ``cols`` locations, ``stride`` pixels apart, the first at half a stride."""

    stride: int = Field(ge=1)
    rows: int = Field(ge=1)
    cols: int = Field(ge=1)


class DetectionSpec(_Frozen):
    """The levels of an answer and how it is read: boxes under ``score`` go, of ``overlap``ping ones the best stays."""

    levels: tuple[Level, ...] = Field(min_length=1)
    score: float = Field(default=0.4, gt=0, lt=1)
    overlap: float = Field(default=0.5, gt=0, le=1)
    most: int = Field(default=100, ge=1)

    @property
    def locations(self) -> int:
        """Number of locations L of all levels."""
        return sum(level.rows * level.cols for level in self.levels)

    def width(self, classes: int) -> int:
        """Numbers N in one answer."""
        return (classes + 5) * self.locations


@dataclass(frozen=True, slots=True)
class Found:
    """boxes: float32 (M, 4) as left, top, right, bottom; scores: float32 (M,), best first; labels: int64 (M,)."""

    boxes: Floats
    scores: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Found":
        """Those with at least this score."""
        good = self.scores >= score
        return Found(self.boxes[good], self.scores[good], self.labels[good])


def decode(answer_N: Floats, classes: int, spec: DetectionSpec, score: float | None = None) -> Found:
    """Boxes in the model's picture, after suppression of overlapping ones; ``score`` overrides the spec's.

    A location's score for a class is the square root of class score times expected overlap.
    """
    least = spec.score if score is None else score
    tables = [_locations(part, level) for part, level in zip(_parts(answer_N, classes, spec), spec.levels, strict=True)]
    boxes, scores = (np.concatenate(column) for column in zip(*tables, strict=True))
    places, labels = np.nonzero(scores >= least)
    kept = nms(boxes[places], scores[places, labels], labels, spec.overlap)[: spec.most]
    return Found(boxes[places[kept]], scores[places[kept], labels[kept]], labels[kept])


def _parts(answer_N: Floats, classes: int, spec: DetectionSpec) -> list[Floats]:
    """The answer cut into its levels: each (K + 5, rows * cols)."""
    ends = np.cumsum([(classes + 5) * level.rows * level.cols for level in spec.levels])[:-1]
    return [part.reshape(classes + 5, -1) for part in np.split(answer_N, ends)]


def _locations(part_CL: Floats, level: Level) -> tuple[Floats, Floats]:
    """Boxes (L, 4) and scores (L, K) of one level."""
    rows, cols = np.divmod(np.arange(part_CL.shape[1]), level.cols)
    centre = (np.stack([cols, rows], 1) + 0.5) * level.stride
    left_top, right_bottom = part_CL[-5:-3].T * level.stride, part_CL[-3:-1].T * level.stride
    boxes = np.concatenate([centre - left_top, centre + right_bottom], 1).astype(np.float32)
    scores = np.sqrt(_sigmoid(part_CL[:-5]) * _sigmoid(part_CL[-1:])).T
    height, width = level.rows * level.stride, level.cols * level.stride
    boxes = np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32))
    solid = np.all(boxes[:, 2:] > boxes[:, :2], axis=1, keepdims=True)
    return boxes, np.where(solid, scores, 0.0).astype(np.float32)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x.astype(np.float32))), np.float32)


def overlaps(a_M4: Floats, b_N4: Floats) -> Floats:
    """Intersection over union of every pair (M, N)."""
    corner = np.minimum(a_M4[:, None, 2:], b_N4[None, :, 2:]) - np.maximum(a_M4[:, None, :2], b_N4[None, :, :2])
    both = np.clip(corner, 0, None).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a_M4, b_N4))
    return np.asarray(both / np.maximum(area_a[:, None] + area_b[None] - both, 1e-9), np.float32)


def nms(boxes_M4: Floats, scores_M: Floats, labels_M: Ints, overlap: float) -> Ints:
    """Greedy suppression within each class: indices of the boxes that stay, best score first."""
    order = np.argsort(-scores_M, kind="stable")
    boxes, labels = boxes_M4[order], labels_M[order]
    beaten = (overlaps(boxes, boxes) > overlap) & (labels[:, None] == labels[None])
    alive = np.ones(len(order), bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~beaten[index, index + 1 :]
    return np.asarray(order[alive], np.int64)


def to_picture(boxes_M4: Floats, preprocess: Preprocess, rows: int, cols: int) -> Floats:
    """Boxes of a source frame of ``rows`` x ``cols`` pixels -> the model's picture, cut at its edges."""
    (left, top, wide, high), (height, width) = _seen(preprocess, rows, cols), preprocess.size
    scale = np.asarray([width / wide, height / high] * 2, np.float32)
    moved = (boxes_M4 - np.asarray([left, top] * 2, np.float32)) * scale
    return np.asarray(np.clip(moved, 0, [width, height, width, height]), np.float32)


def to_frame(boxes_M4: Floats, preprocess: Preprocess, rows: int, cols: int) -> Floats:
    """Boxes of the model's picture -> pixels of the source frame."""
    (left, top, wide, high), (height, width) = _seen(preprocess, rows, cols), preprocess.size
    scale = np.asarray([wide / width, high / height] * 2, np.float32)
    return np.asarray(boxes_M4 * scale + np.asarray([left, top] * 2, np.float32), np.float32)


def _seen(preprocess: Preprocess, rows: int, cols: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part of a frame that the model sees."""
    top, left, height, width = preprocess.window((rows, cols))
    return left, top, width, height
