"""Knowledge distillation from a clip teacher into a student that answers at every frame.

Hinton et al. 2015, arXiv:1503.02531. The student's clip answer (mean of its frame logits) matches labels and
the teacher's soft answer; every frame after the warm-up is also asked by itself. With many labels a clip each
class is a question of its own: logistic losses take the place of the softmax. B clips, T frames, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from train.data.batch import sent

__all__ = ["clip_logits", "distillation_loss"]


def clip_logits(logits_BTK: Tensor, warmup: int = 0) -> Tensor:
    """Mean of the frame logits after ``warmup`` frames (B, K)."""
    frames = logits_BTK.shape[1]
    return logits_BTK[:, min(warmup, frames - 1) :].mean(1)


def distillation_loss(
    logits_BTK: Tensor, labels: Tensor, teacher_BK: Tensor | None, alpha: float, temperature: float,
    smoothing: float = 0.0, warmup: int = 0,
) -> Tensor:  # fmt: skip
    """(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student).

    On the clip answer and on every frame after ``warmup``. Without a teacher only the cross-entropy counts.
    ``labels`` are classes int64 (B,), or multi-hot float32 (B, K): then both terms are means over the classes.
    """
    frames, classes = logits_BTK.shape[1:]
    asked = logits_BTK[:, min(warmup, frames - 1) :]
    count = asked.shape[1]
    answers = torch.cat([clip_logits(logits_BTK, warmup), asked.reshape(-1, classes)])
    weights = torch.cat([torch.full((len(labels),), 1.0), torch.full((len(labels) * count,), 0.5 / count)])
    weights = sent(weights / weights.sum(), answers.device)
    targets = torch.cat([labels, labels.repeat_interleave(count, 0)])
    hard = _hard(answers, targets, smoothing)
    if teacher_BK is None:
        return (weights * hard).sum()
    guide = torch.cat([teacher_BK, teacher_BK.repeat_interleave(count, 0)]) / temperature
    soft = (_soft_many if labels.ndim == 2 else _soft_one)(answers / temperature, guide)
    return (weights * ((1 - alpha) * hard + alpha * temperature**2 * soft)).sum()


def _hard(answers_NK: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Against the labels (N,)."""
    if targets.ndim == 1:
        return functional.cross_entropy(answers_NK, targets, reduction="none", label_smoothing=smoothing)
    wanted = targets * (1 - smoothing) + 0.5 * smoothing
    return functional.binary_cross_entropy_with_logits(answers_NK, wanted, reduction="none").mean(1)


def _soft_one(answers_NK: Tensor, guide_NK: Tensor) -> Tensor:
    """KL between softmaxes (N,)."""
    target = functional.softmax(guide_NK, 1)
    return functional.kl_div(functional.log_softmax(answers_NK, 1), target, reduction="none").sum(1)


def _soft_many(answers_NK: Tensor, guide_NK: Tensor) -> Tensor:
    """KL between the classes' coins, their mean (N,)."""
    target = torch.sigmoid(guide_NK)
    cross = functional.binary_cross_entropy_with_logits(answers_NK, target, reduction="none")
    own = functional.binary_cross_entropy_with_logits(guide_NK, target, reduction="none")
    return (cross - own).mean(1)
