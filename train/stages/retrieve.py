"""What differs when fine-tuning is for retrieval: embeddings are trained and judged, and the head is read off them.

Supervised contrastive learning leaves the head untouched. So that the model still classifies, each class then gets
the hyperplane half-way between the mean of its own training clips and that of all others (nearest class mean, one
against the rest), on embeddings of unit length. Shapes: N clips, D width, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.preprocess import Preprocess
from train.data.augment import soft
from train.data.batch import Source
from train.evaluate import answer
from train.features import embed
from train.models.store import Model
from train.tasks.retrieval import Retrieval

__all__ = ["fit_head", "judge", "seeker"]


def judge(model: Model, data: Source, preprocess: Preprocess, task: Retrieval) -> dict[str, Any]:
    """Every clip of a split asks all others of it: recall@k, mAP, k-NN."""
    found = answer(model, data, preprocess, how=embed)
    return task.metrics(found.logits, found.labels)


def seeker(model: Model, data: Source | None, preprocess: Preprocess, task: Retrieval) -> Callable[[], float] | None:
    """The figure that chooses weights on the validation split, or None without one."""
    return None if data is None else lambda: float(judge(model, data, preprocess, task)[task.chooses])


def fit_head(model: Model, data: Source, preprocess: Preprocess, task: Retrieval) -> None:
    """Set the model's last linear layer from the training clips."""
    head = model.head
    assert isinstance(head, nn.Linear)
    found = answer(model, data, preprocess, how=embed)
    x_ND, labels = torch.from_numpy(found.logits), torch.from_numpy(found.labels)
    weight_KD, bias_K = class_planes(x_ND, soft(labels, len(task.labels)), task.temperature)
    with torch.no_grad():
        head.weight.copy_(weight_KD)
        if head.bias is not None:
            head.bias.copy_(bias_K)


def class_planes(x_ND: Tensor, labels_NK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,): positive where an embedding is nearer to the class's mean than to the others'."""
    unit_ND, others_NK = functional.normalize(x_ND, dim=1), 1 - labels_NK
    own_KD, rest_KD = (
        part.T @ unit_ND / part.sum(0)[:, None].clamp(min=1) for part in (labels_NK, others_NK)
    )  # fmt: skip
    plane_KD = (own_KD - rest_KD) / temperature
    # The layer sees embeddings as they are, not of unit length.
    return plane_KD / x_ND.norm(dim=1).mean().clamp(min=1e-12), -((own_KD + rest_KD) / 2 * plane_KD).sum(1)
