"""Losses of a dense detector: focal loss for scores, generalised IoU for boxes, overlap as the quality's target.

Lin et al. 2017, arXiv:1708.02002; Rezatofighi et al. 2019, arXiv:1902.09630; the IoU branch in place of centre-ness
is of the journal version of FCOS (arXiv:2006.09214). Shapes: F frames, L locations, M boxes, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.detection import DetectionSpec
from train.detect.assign import assign, boxes_of, split_answer

__all__ = ["detection_loss", "focal_loss", "giou"]


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise focal loss; ``target`` in [0, 1] (soft targets weigh by their distance, Li et al. 2020).

    For targets of 0 and 1 this is -alpha_t (1 - p_t)^gamma log(p_t).
    """
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = alpha * target + (1 - alpha) * (1 - target)
    return weight * (logits.sigmoid() - target).abs().pow(gamma) * cross


def giou(a_N4: Tensor, b_N4: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised IoU in [-1, 1] and plain IoU of box pairs, each (N,)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (low_a, high_a), (low_b, high_b) = ((x[..., :2], x[..., 2:]) for x in (a_N4, b_N4))
    both = area(torch.maximum(low_a, low_b), torch.minimum(high_a, high_b))
    union = area(low_a, high_a) + area(low_b, high_b) - both
    iou = both / union.clamp(min=1e-6)
    hull = area(torch.minimum(low_a, low_b), torch.maximum(high_a, high_b)).clamp(min=1e-6)
    return iou - (hull - union) / hull, iou


def detection_loss(
    answer_FN: Tensor, boxes_FM4: Tensor, labels_FM: Tensor, classes: int, spec: DetectionSpec, box_weight: float = 2.0
) -> Tensor:
    """Focal + ``box_weight`` * (1 - GIoU) + quality, each per positive location of the batch."""
    answer, wanted = split_answer(answer_FN, classes, spec), assign(boxes_FM4, labels_FM, spec)
    positive = wanted.positive
    count = positive.sum().clamp(min=1)
    target = functional.one_hot(wanted.labels.clamp(min=0), classes) * positive[..., None]
    scores = focal_loss(answer.scores, target.to(answer.scores.dtype)).sum() / count
    general, iou = giou(boxes_of(answer.distances, spec)[positive], wanted.boxes[positive])
    quality = functional.binary_cross_entropy_with_logits(
        answer.quality[positive], iou.detach().clamp(0, 1), reduction="sum"
    )
    return scores + (box_weight * (1 - general).sum() + quality) / count
