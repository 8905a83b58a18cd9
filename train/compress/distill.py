"""Knowledge distillation from a clip teacher into a student that answers at every frame.

Hinton et al. 2015, arXiv:1503.02531. The student's clip answer (mean of its frame logits) matches labels and
the teacher's soft answer; every frame after the warm-up is also asked by itself.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["clip_logits", "distillation_loss"]


def clip_logits(logits_BTK: Tensor, warmup: int = 0) -> Tensor:
    """Mean of the frame logits after ``warmup`` frames (B, K)."""
    frames = logits_BTK.shape[1]
    return logits_BTK[:, min(warmup, frames - 1) :].mean(1)


def distillation_loss(
    logits_BTK: Tensor, labels_B: Tensor, teacher_BK: Tensor | None, alpha: float, temperature: float,
    smoothing: float = 0.0, warmup: int = 0,
) -> Tensor:  # fmt: skip
    """(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student).

    On the clip answer and on every frame after ``warmup``. Without a teacher only the cross-entropy counts.
    """
    frames, classes = logits_BTK.shape[1:]
    asked = logits_BTK[:, min(warmup, frames - 1) :]
    count = asked.shape[1]
    answers = torch.cat([clip_logits(logits_BTK, warmup), asked.reshape(-1, classes)])
    weights = torch.cat([torch.full((len(labels_B),), 1.0), torch.full((len(labels_B) * count,), 0.5 / count)])
    weights = (weights / weights.sum()).to(answers.device)
    labels = torch.cat([labels_B, labels_B.repeat_interleave(count)])
    hard = functional.cross_entropy(answers, labels, reduction="none", label_smoothing=smoothing)
    if teacher_BK is None:
        return (weights * hard).sum()
    soft_target = functional.softmax(teacher_BK / temperature, 1)
    target = torch.cat([soft_target, soft_target.repeat_interleave(count, 0)])
    soft = functional.kl_div(functional.log_softmax(answers / temperature, 1), target, reduction="none").sum(1)
    return (weights * ((1 - alpha) * hard + alpha * temperature**2 * soft)).sum()
