"""Retrieval: embeddings in which clips of one class lie close, judged by their neighbours and by nothing trained.

The loss is supervised contrastive (Khosla et al. 2020, arXiv:2004.11362). Two clips are as alike as the cosine of
their embeddings. Shapes: B batch, N clips, Q queries, G gallery, D width, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.data.batch import Batch
from train.loop.gather import of_all
from train.tasks.figure import new_figure, save_figure

__all__ = ["Retrieval", "alike", "knn_answers", "make", "neighbours"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]


def make(labels: tuple[str, ...], **settings: Any) -> "Retrieval":
    """The registry's constructor."""
    return Retrieval(labels, **settings)


class _Unit(nn.Module):
    def forward(self, x_BD: Tensor) -> Tensor:
        return functional.normalize(x_BD, dim=1)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """``outputs`` are embeddings (N, D); ``targets`` int64 (N,) or multi-hot (N, K): alike means one label in common.

    ``width`` is the size of the embedding behind the head, None for the encoder's own; ``nearest`` is k of k-NN.
    """

    labels: tuple[str, ...]
    width: int | None = None
    temperature: float = 0.1
    nearest: int = 5
    recalls: tuple[int, ...] = (1, 5, 10)

    @property
    def chooses(self) -> str:
        """Mean average precision of the ranking."""
        return "map"

    def head(self, width: int) -> nn.Module:
        """A projection onto the unit sphere."""
        return _Unit() if self.width is None else nn.Sequential(nn.Linear(width, self.width), _Unit())

    def loss(self, batch: Batch, outputs: Tensor) -> Tensor:
        """Supervised contrastive loss over the batch of all processes; a clip alone in its class is not asked."""
        unit = functional.normalize(outputs, dim=1)
        (every, start), (labels, _) = of_all(unit, batch), of_all(batch.labels, batch)
        itself = torch.eye(len(every), dtype=torch.bool, device=unit.device)
        positive = _same(labels, labels) & ~itself
        own = slice(start, start + len(unit))
        logits = (unit @ every.T / self.temperature).masked_fill(itself[own], float("-inf"))
        log_p = logits.log_softmax(1).masked_fill(itself[own], 0.0)
        terms = -(log_p * positive[own]).sum(1) / positive[own].sum(1).clamp(min=1)
        # The mean over the clips that are asked, whichever process holds them; their share is not that of the clips.
        return terms.mean() * len(every) / positive.any(1).sum().clamp(min=1)

    def metrics(self, outputs: Floats, targets: Labels) -> dict[str, Any]:
        """Leave-one-out: every clip asks all others. As :meth:`against` with the clip itself left out."""
        return self._judge(outputs, targets, outputs, targets, leave_out=True)

    def against(self, gallery: Floats, known: Labels, queries: Floats, truth: Labels) -> dict[str, Any]:
        """Queries of one split ask a gallery of another: ``knn`` accuracy, ``recall@k`` and ``map``."""
        return self._judge(queries, truth, gallery, known, leave_out=False)

    def _judge(self, queries: Floats, truth: Labels, gallery: Floats, known: Labels, leave_out: bool) -> dict[str, Any]:
        order, scores = neighbours(queries, gallery, leave_out=leave_out)
        hit = alike(truth, known)[np.arange(len(order))[:, None], order]
        possible = hit.any(1)  # a clip that has no fellow cannot be found
        ranks = np.arange(1, hit.shape[1] + 1)
        found = hit[possible]
        precision = (found.cumsum(1) / ranks * found).sum(1) / found.sum(1)
        figures: dict[str, Any] = {"clips": len(queries), "asked": int(possible.sum())}
        if truth.ndim == 1:
            answers = knn_answers(order, scores, known, len(self.labels), self.nearest)
            figures["knn"] = float((answers == truth).mean())
        figures |= {f"recall@{k}": float(found[:, :k].any(1).mean()) if len(found) else 0.0 for k in self.recalls}
        return {**figures, "map": float(precision.mean()) if len(found) else 0.0}

    def figures(self, folder: Path, outputs: Floats, targets: Labels) -> tuple[Path, ...]:
        """``recall.png``: recall at k against chance; ``map.png``: the embeddings' two main axes, a colour a class."""
        return (
            _draw_recall(folder / "recall.png", outputs, targets),
            _draw_map(folder / "map.png", self.labels, outputs, targets),
        )


def _same(a: Tensor, b: Tensor) -> Tensor:
    """True where a label is shared (len(a), len(b))."""
    return a[:, None] == b[None] if a.ndim == 1 else (a > 0.5).float() @ (b > 0.5).float().T > 0


def alike(a: Labels, b: Labels) -> npt.NDArray[np.bool_]:
    """True where a label is shared (Q, G)."""
    return np.asarray(_same(torch.from_numpy(a), torch.from_numpy(b)).numpy())


def neighbours(queries_QD: Floats, gallery_GD: Floats, leave_out: bool = False) -> tuple[Labels, Floats]:
    """Places in the gallery from the most alike down, and their cosines (Q, G).

    With ``leave_out`` the queries are the gallery and none finds itself: (Q, G - 1).
    """
    cosines = _unit(queries_QD) @ _unit(gallery_GD).T
    if leave_out:
        np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")
    order = order[:, :-1] if leave_out else order
    return order, np.take_along_axis(cosines, order, 1)


def knn_answers(order_QG: Labels, cosines_QG: Floats, known_G: Labels, classes: int, nearest: int) -> Labels:
    """Class (Q,) with most votes among the ``nearest`` clips; each vote weighs as much as the clip is alike."""
    votes = np.zeros((len(order_QG), classes))
    weights = 1 + cosines_QG[:, :nearest]  # never negative, so that a vote never counts against its class
    np.add.at(votes, (np.arange(len(order_QG))[:, None], known_G[order_QG[:, :nearest]]), weights)
    return np.asarray(votes.argmax(1))


def _unit(x_ND: Floats) -> Floats:
    return np.asarray(x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12))


def _draw_recall(path: Path, outputs: Floats, targets: Labels) -> Path:
    order, _ = neighbours(outputs, outputs, leave_out=True)
    hit = alike(targets, targets)[np.arange(len(order))[:, None], order]
    hit = hit[hit.any(1)][:, :20]
    reached = np.maximum.accumulate(hit, 1).mean(0)
    ranks = np.arange(1, len(reached) + 1)
    # Drawing k of the others blindly: the share that is alike differs from class to class.
    share = (alike(targets, targets).sum(1) - 1)[:, None] / max(1, len(targets) - 1)
    figure, axes = new_figure(5.2, 3.6)
    axes.plot(ranks, reached, marker="o", markersize=4, color="#3b75af", label="embeddings")
    axes.plot(ranks, (1 - (1 - share) ** ranks).mean(0), color="grey", linestyle=":", label="drawn blindly")
    axes.set(xlabel="k", ylabel="recall at k", ylim=(0, 1.03), xticks=ranks[::2])
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def _draw_map(path: Path, labels: tuple[str, ...], outputs: Floats, targets: Labels) -> Path:
    unit = _unit(outputs)
    centred = unit - unit.mean(0)
    _, strength, axes_DD = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes_DD[:2].T if len(axes_DD) > 1 else np.pad(centred @ axes_DD[:1].T, ((0, 0), (0, 1)))
    shown = np.cumsum(strength**2)[min(1, len(strength) - 1)] / max(float((strength**2).sum()), 1e-12)
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    figure, axes = new_figure(6.4, 4.8)
    for index, label in enumerate(labels):
        mine = places[classes == index]
        marker = "os^Dv"[index // 10 % 5]
        axes.scatter(mine[:, 0], mine[:, 1], s=18, alpha=0.7, label=label, color=f"C{index % 10}", marker=marker)
    axes.set(title=f"two main axes ({shown:.0%} of the variance)", xticks=[], yticks=[])
    axes.legend(fontsize=7, ncols=1 + len(labels) // 20, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, path)
