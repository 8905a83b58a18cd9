"""Mean average precision of boxes, the COCO way, computed by COCO's own library (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.coco import FrameBoxes
from toolkit.detection import Found
from toolkit.errors import MissingDependency

__all__ = ["BoxPrecision", "box_precision"]


@dataclass(frozen=True, slots=True)
class BoxPrecision:
    """ap: mean over overlaps of 0.50 to 0.95 and over classes; ap50 and ap75: at one overlap; per_class: ap50."""

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, float]
    frames: int
    boxes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def box_precision(truth: Sequence[FrameBoxes], found: Sequence[Found], labels: tuple[str, ...]) -> BoxPrecision:
    """Compare frame by frame; classes without a true box do not count, nor does what is found in a crowd.

    Raises:
        MissingDependency: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingDependency("pycocotools", "detect") from error
    total = sum(len(frame.labels) for frame in truth)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        true = COCO()
        true.dataset = {
            "info": {},
            "images": [{"id": index} for index in range(len(truth))],
            "categories": [{"id": index, "name": name} for index, name in enumerate(labels)],
            "annotations": _annotations(truth),
        }
        true.createIndex()
        rows = _results(found)
        if not rows or not total:
            return BoxPrecision(0.0, 0.0, 0.0, {}, len(truth), total)
        judge = COCOeval(true, true.loadRes(rows), "bbox")
        # Small, medium and large boxes apart would cost three quarters of the time and are not asked for.
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
        judge.evaluate()
        judge.accumulate()
    # (overlaps, recalls, classes, areas, most): all areas, at most 100 boxes a frame; -1 where a class has no box.
    table = judge.eval["precision"][:, :, :, 0, 2]
    per_class = {name: _mean(table[0, :, k]) for k, name in enumerate(labels) if (table[0, :, k] > -1).any()}
    return BoxPrecision(_mean(table), _mean(table[0]), _mean(table[5]), per_class, len(truth), total)


def _mean(values: Any) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else 0.0


def _annotations(truth: Sequence[FrameBoxes]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    parts = [(image, frame, 0) for image, frame in enumerate(truth)]
    parts += [(image, frame.crowd, 1) for image, frame in enumerate(truth) if frame.crowd is not None]
    for image, frame, crowd in parts:
        for box, label in zip(_as_coco(frame.boxes), frame.labels.tolist(), strict=True):
            rows.append({"id": len(rows) + 1, "image_id": image, "category_id": label, "bbox": box,
                         "area": box[2] * box[3], "iscrowd": crowd})  # fmt: skip
    return rows


def _results(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, frame in enumerate(found)
        for box, label, score in zip(_as_coco(frame.boxes), frame.labels.tolist(), frame.scores.tolist(), strict=True)
    ]


def _as_coco(boxes_M4: Any) -> list[list[float]]:
    """Left, top, width, height."""
    values = np.asarray(boxes_M4, np.float64)
    rows: list[list[float]] = np.concatenate([values[:, :2], values[:, 2:] - values[:, :2]], 1).tolist()
    return rows
