"""Object detection in video: boxes at every frame, with what earlier frames showed as context.

The head is dense and anchor-free; its answer is one vector a frame, laid out as :mod:`toolkit.detection` says. COCO's
own mean average precision judges. Shapes: B clips, T frames, N numbers of an answer, M boxes, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from toolkit.coco import FrameBoxes
from toolkit.detection import EVERY, DetectionSpec, Found, decode
from toolkit.precision import box_precision
from toolkit.recipe import BoxesConfig
from train.data.batch import Batch
from train.detect.head import DetectHead
from train.detect.loss import detection_loss
from train.tasks.figure import new_figure, save_figure, shortened

__all__ = ["Detection", "make"]


def make(labels: tuple[str, ...], **settings: Any) -> "Detection":
    """The registry's constructor; ``spec`` is needed, the rest has defaults."""
    return Detection(labels, **settings)


@dataclass(frozen=True, slots=True)
class Detection:
    """``outputs`` are answers (..., N) of every frame; ``targets`` one :class:`FrameBoxes` (or None) a frame."""

    labels: tuple[str, ...]
    spec: DetectionSpec
    boxes: BoxesConfig = field(default_factory=BoxesConfig)
    box_weight: float = 2.0

    @property
    def chooses(self) -> str:
        """COCO's average precision."""
        return "ap"

    def head(self, width: int) -> nn.Module:
        """The dense head over feature maps of ``width`` channels."""
        return DetectHead(width, len(self.labels), self.boxes)

    def loss(self, batch: Batch, outputs: Tensor) -> Tensor:
        """``outputs`` (B, T, N) against the batch's boxes; frames that are not annotated (label -2) do not count."""
        assert batch.boxes is not None
        assert batch.box_labels is not None
        labels = batch.box_labels.flatten(0, 1)
        known = labels[:, 0] > -2
        boxes, answers = batch.boxes.flatten(0, 1)[known], outputs.flatten(0, 1)[known]
        return detection_loss(answers, boxes, labels[known], len(self.labels), self.spec, self.box_weight)

    def found(self, outputs: npt.NDArray[np.float32], score: float = EVERY) -> list[Found]:
        """Boxes of every frame of (F, N)."""
        return [decode(answer, len(self.labels), self.spec, score) for answer in outputs]

    def metrics(self, outputs: npt.NDArray[np.float32], targets: Sequence[FrameBoxes | None]) -> dict[str, Any]:
        """``ap``, ``ap50``, ``ap75``, ``per_class``, and the numbers of frames and boxes that count."""
        known = [index for index, target in enumerate(targets) if target is not None]
        truth = [target for target in targets if target is not None]
        return box_precision(truth, self.found(outputs[known]), self.labels).as_dict()

    def figures(
        self, folder: Path, outputs: npt.NDArray[np.float32], targets: Sequence[FrameBoxes | None]
    ) -> tuple[Path, ...]:
        """``precision.png``: COCO's average precision at one overlap, by class."""
        metrics = self.metrics(outputs, targets)
        figure, axes = new_figure(5.0, 1.4 + 0.3 * len(metrics["per_class"]))
        names, values = [shortened(name) for name in metrics["per_class"]], list(metrics["per_class"].values())
        axes.bar_label(axes.barh(range(len(names)), values, color="#3b75af"), fmt="%.2f", padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, 1.08), xlabel="AP50", title=f"AP {metrics['ap']:.3f}, AP50 {metrics['ap50']:.3f}")
        return (save_figure(figure, folder / "precision.png"),)
