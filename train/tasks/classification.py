"""Classification and action recognition: one class a clip (cross-entropy) or any number of them (BCE with logits).

Shapes: B batch, N clips, D width, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

from toolkit.many import average_precision, judge_many, mean_known, mean_precision, precisions, share
from toolkit.statistics import wilson
from train.data.batch import Batch
from train.tasks.figure import new_figure, save_figure, shortened

__all__ = ["Classification", "average_precision", "confusion", "make", "mean_precision"]

Floats = npt.NDArray[np.float32]


def make(labels: tuple[str, ...], **settings: Any) -> "Classification":
    """The registry's constructor."""
    return Classification(labels, **settings)


@dataclass(frozen=True, slots=True)
class Classification:
    """``outputs`` are logits (N, K); ``targets`` int64 (N,), or with ``multi_label`` multi-hot float32 (N, K)."""

    labels: tuple[str, ...]
    multi_label: bool = False
    label_smoothing: float = 0.0

    @property
    def chooses(self) -> str:
        """Accuracy for one class a clip, mean average precision for many."""
        return "map" if self.multi_label else "top1"

    def head(self, width: int) -> nn.Module:
        """A linear layer."""
        return nn.Linear(width, len(self.labels))

    def loss(self, batch: Batch, outputs: Tensor) -> Tensor:
        """Cross-entropy against classes (B,) or soft labels (B, K); binary cross-entropy for many labels (B, K)."""
        if not self.multi_label:
            return functional.cross_entropy(outputs, batch.labels, label_smoothing=self.label_smoothing)
        wanted = batch.labels * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return functional.binary_cross_entropy_with_logits(outputs, wanted)

    def metrics(self, outputs: Floats, targets: npt.NDArray[Any]) -> dict[str, Any]:
        """``clips``, ``map``, ``per_class``; for one class a clip also ``top1`` (``ci_low``, ``ci_high``) and ``top5``.

        For many labels ``exact`` is the share of clips with every label right at probability 0.5, and ``f1`` counts
        all labels of all clips together.
        """
        return judge_many(outputs, targets, self.labels) if self.multi_label else self._one_class(outputs, targets)

    def _one_class(self, outputs: Floats, targets: npt.NDArray[Any]) -> dict[str, Any]:
        order = np.argsort(-outputs, axis=1, kind="stable")
        right = order == targets[:, None]
        hits, table = int(right[:, 0].sum()), confusion(outputs.argmax(1), targets, len(self.labels))
        low, high = wilson(hits, len(targets))
        # Softmax, not logits: average precision ranks clips against each other, so their scales must agree.
        shares = np.exp(outputs - outputs.max(1, keepdims=True))
        by_class = precisions(shares / shares.sum(1, keepdims=True), np.eye(len(self.labels))[targets])
        return {
            "clips": len(targets), "top1": hits / len(targets), "ci_low": low, "ci_high": high,
            "top5": float(right[:, :5].any(1).mean()), "map": mean_known(by_class), "confusion": table.tolist(),
            "per_class": {
                label: {"clips": int(row.sum()), "recall": share(row[index], row.sum()), "ap": by_class[index]}
                for index, (label, row) in enumerate(zip(self.labels, table, strict=True))
            },
        }  # fmt: skip

    def figures(self, folder: Path, outputs: Floats, targets: npt.NDArray[Any]) -> tuple[Path, ...]:
        """``confusion.png`` for one class a clip, ``average_precision.png`` for many labels."""
        if self.multi_label:
            return (
                _draw_precisions(folder / "average_precision.png", self.labels, precisions(outputs, targets > 0.5)),
            )
        table = confusion(outputs.argmax(1), targets, len(self.labels))
        return (_draw_confusion(folder / "confusion.png", self.labels, table),)


def confusion(predicted: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """counts[truth, predicted] (K, K)."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def _draw_confusion(path: Path, labels: tuple[str, ...], table: npt.NDArray[np.int64]) -> Path:
    """Rows are the truth, in shares of the class; counts are written in while they can be read."""
    size = len(labels)
    side = min(14.0, 2.6 + 0.55 * size)
    figure, axes = new_figure(side + 0.8, side)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    names = [shortened(label) for label in labels]
    recalls = [f"{name}  {shares[k, k]:.0%}" for k, name in enumerate(names)]
    axes.set_xticks(range(size), names, rotation=90 if size > 6 or max(map(len, names)) > 5 else 0)
    axes.set_yticks(range(size), recalls)
    axes.set(xlabel="answer", ylabel="truth, recall", title=f"{np.trace(table)} of {table.sum()} clips right")
    if size <= 25:
        for (row, column), count in np.ndenumerate(table):
            if count:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=8)
    return save_figure(figure, path)


def _draw_precisions(path: Path, labels: tuple[str, ...], precisions: Sequence[float | None]) -> Path:
    """One bar a class, best on top; a class that does not occur has none."""
    pairs = zip(precisions, map(shortened, labels), strict=True)
    known = sorted((value, label) for value, label in pairs if value is not None)
    figure, axes = new_figure(6.4, min(20.0, 1.4 + 0.26 * len(known)))
    bars = axes.barh(range(len(known)), [value for value, _ in known], color="#3b75af")
    axes.set_yticks(range(len(known)), [label for _, label in known])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(mean_known(precisions), color="black", linewidth=1, linestyle=":")
    axes.set(xlim=(0, 1.08), xlabel="average precision", title=f"mean {mean_known(precisions):.3f} (dotted)")
    return save_figure(figure, path)
