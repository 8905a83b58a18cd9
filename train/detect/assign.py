"""Which location answers for which box (FCOS with centre sampling), and answers cut into their parts.

A location is positive for a box if it lies inside it and within ``radius`` strides of its centre; of several boxes
the smallest wins. A box that no location falls into (narrow, between two columns) gets the nearest one. With two
levels each box belongs to one by its longer side. Shapes: F frames, L locations, M boxes, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.detection import DetectionSpec

__all__ = ["Answer", "Assignment", "assign", "boxes_of", "split_answer"]

_FAR = 1e8


@dataclass(frozen=True, slots=True)
class Answer:
    """scores: (F, L, K) before the sigmoid; distances: (F, L, 4) in strides; quality: (F, L) before the sigmoid."""

    scores: Tensor
    distances: Tensor
    quality: Tensor


@dataclass(frozen=True, slots=True)
class Assignment:
    """labels: int64 (F, L), -1 for background; boxes: (F, L, 4), the box each positive location answers for."""

    labels: Tensor
    boxes: Tensor

    @property
    def positive(self) -> Tensor:
        """(F, L) bool."""
        return self.labels >= 0


def split_answer(answer_FN: Tensor, classes: int, spec: DetectionSpec) -> Answer:
    """Cut (F, N) into its parts, locations of all levels in order."""
    sizes = [(classes + 5) * level.rows * level.cols for level in spec.levels]
    parts = [part.unflatten(1, (classes + 5, -1)) for part in torch.split(answer_FN, sizes, 1)]  # type: ignore[no-untyped-call]
    table = torch.cat(parts, 2).transpose(1, 2)
    return Answer(table[..., :classes], table[..., classes : classes + 4], table[..., -1])


def locations(spec: DetectionSpec, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Centres (L, 2) as x, y in pixels, and strides (L,)."""
    centres, strides = [], []
    for level in spec.levels:
        rows, cols = torch.meshgrid(torch.arange(level.rows), torch.arange(level.cols), indexing="ij")
        centres.append((torch.stack([cols, rows], -1).reshape(-1, 2).float() + 0.5) * level.stride)
        strides.append(torch.full((level.rows * level.cols,), float(level.stride)))
    return torch.cat(centres).to(device), torch.cat(strides).to(device)


def boxes_of(distances_FL4: Tensor, spec: DetectionSpec) -> Tensor:
    """Distances in strides -> left, top, right, bottom in pixels (F, L, 4)."""
    centres, strides = locations(spec, distances_FL4.device)
    pixels = distances_FL4 * strides[:, None]
    return torch.cat([centres - pixels[..., :2], centres + pixels[..., 2:]], -1)


def assign(boxes_FM4: Tensor, labels_FM: Tensor, spec: DetectionSpec, radius: float = 1.5) -> Assignment:
    """Assign every location; ``labels`` -1 means that there is no box."""
    frames, most = labels_FM.shape
    centres_L2, strides_L = locations(spec, boxes_FM4.device)
    if most == 0:
        empty = torch.full((frames, len(strides_L)), -1, device=labels_FM.device)
        return Assignment(empty, boxes_FM4.new_zeros(frames, len(strides_L), 4))
    middle_FM2 = (boxes_FM4[..., :2] + boxes_FM4[..., 2:]) / 2
    away_FLM2 = (centres_L2[None, :, None] - middle_FM2[:, None]).abs()
    half_F1M2 = ((boxes_FM4[..., 2:] - boxes_FM4[..., :2]) / 2)[:, None]
    own_FLM = _own_level(boxes_FM4, spec) & (labels_FM >= 0)[:, None]
    near_FLM = (away_FLM2 <= radius * strides_L[None, :, None, None]).all(-1)
    inside_FLM = (away_FLM2 < half_F1M2).all(-1) & near_FLM & own_FLM
    distance_FLM = away_FLM2.square().sum(-1).masked_fill(~own_FLM, _FAR)
    nearest_FLM = (distance_FLM == distance_FLM.amin(1, keepdim=True)) & own_FLM
    candidate_FLM = torch.where(inside_FLM.any(1, keepdim=True), inside_FLM, nearest_FLM)
    area_FM = (boxes_FM4[..., 2:] - boxes_FM4[..., :2]).prod(-1)
    smallest_FL, chosen_FL = area_FM[:, None].expand_as(candidate_FLM).masked_fill(~candidate_FLM, _FAR).min(2)
    labels = labels_FM.gather(1, chosen_FL).masked_fill(smallest_FL >= _FAR, -1)
    return Assignment(labels, boxes_FM4.gather(1, chosen_FL[..., None].expand(-1, -1, 4)))


def _own_level(boxes_FM4: Tensor, spec: DetectionSpec) -> Tensor:
    """(F, L, M): whether a box belongs to the level of a location; the first takes sides up to 8 of its strides."""
    longest_FM = (boxes_FM4[..., 2:] - boxes_FM4[..., :2]).amax(-1)
    last, low, parts = len(spec.levels) - 1, 0.0, []
    for index, level in enumerate(spec.levels):
        high = _FAR if index == last else 8.0 * level.stride
        fits_FM = (longest_FM > low) & (longest_FM <= high)
        parts.append(fits_FM[:, None].expand(-1, level.rows * level.cols, -1))
        low = high
    return torch.cat(parts, 1)
