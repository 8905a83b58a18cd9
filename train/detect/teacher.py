"""A COCO detector as teacher: FastestDet (a public one-level detector of 0.25 M parameters) through ONNX Runtime.

Its answer (1, 5 + C, h, w) holds, per cell, objectness, tanh offsets of the centre in cells, sigmoid size as a share of
the picture, and class probabilities; a box scores objectness^0.6 * class^0.4. Its boxes become pseudo-labels in the
pixels of the source frame: instead of annotations, or to refine where annotated objects are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.coco import FrameBoxes
from toolkit.cv import opencv
from toolkit.detection import Found, nms, overlaps
from toolkit.errors import MissingDependency, UserError, nearest

__all__ = ["FastestDet", "refine"]

_SIDE = 352


class FastestDet:
    """``names`` are the classes in the file's order; ``labels`` those wanted; ``rename`` maps the former to the latter.

    Raises:
        UserError: files missing or of another kind, or a label that the teacher does not know.
        MissingDependency: ONNX Runtime is not installed.
    """

    def __init__(
        self, path: Path, names: Path, labels: tuple[str, ...], rename: Mapping[str, str] | None = None
    ) -> None:
        for file in (path, names):
            if not file.is_file():
                raise UserError(f"teacher {file} does not exist: check detection.teacher and detection.teacher_labels")
        lines = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = [(rename or {}).get(line, line) for line in lines]
        for label in labels:
            if label not in known:
                raise UserError(f"teacher {names} has no class {label!r}{nearest(label, known)}: use detection.rename")
        self._known = np.asarray([labels.index(name) if name in labels else -1 for name in known], np.int64)
        self._session, self._input = _open(path), "input.1"
        found = [(entry.name, tuple(entry.shape)) for entry in self._session.get_inputs()]
        if found != [(self._input, (1, 3, _SIDE, _SIDE))]:
            raise UserError(f"teacher {path} is not a FastestDet file: its inputs are {found}")

    def __call__(self, frame_HWC: npt.NDArray[np.uint8], score: float = 0.4) -> Found:
        """uint8 BGR frame of any size -> boxes in its pixels, of the wanted classes only."""
        found = self.every(frame_HWC, score)
        labels = self._known[found.labels]
        good = labels >= 0
        return Found(found.boxes[good], found.scores[good], labels[good])

    def every(self, frame_HWC: npt.NDArray[np.uint8], score: float = 0.4) -> Found:
        """The same with all the teacher's own classes."""
        small = opencv().resize(frame_HWC, (_SIDE, _SIDE), interpolation=opencv().INTER_LINEAR)
        inputs = np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        (answer,) = self._session.run(None, {self._input: inputs})
        return _decode(answer[0], frame_HWC.shape[0], frame_HWC.shape[1], score)


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(f"teacher {path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error


def _decode(answer_CHW: npt.NDArray[np.float32], rows: int, cols: int, score: float) -> Found:
    high, wide = answer_CHW.shape[1:]
    down, across = np.mgrid[:high, :wide]
    centre_x = (across + np.tanh(answer_CHW[1])) / wide * cols
    centre_y = (down + np.tanh(answer_CHW[2])) / high * rows
    width, height = (1 / (1 + np.exp(-answer_CHW[3]))) * cols, (1 / (1 + np.exp(-answer_CHW[4]))) * rows
    sides = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
    boxes = np.stack(sides, -1).reshape(-1, 4).astype(np.float32)
    boxes = np.clip(boxes, 0, np.asarray([cols, rows, cols, rows], np.float32))
    scores = (answer_CHW[0] ** 0.6 * answer_CHW[5:].max(0) ** 0.4).reshape(-1)
    labels = answer_CHW[5:].argmax(0).reshape(-1)
    good = np.flatnonzero((scores >= score) & (boxes[:, 2:] > boxes[:, :2] + 1).all(1))
    kept = good[nms(boxes[good], scores[good], labels[good], 0.45)]
    return Found(boxes[kept], scores[kept].astype(np.float32), labels[kept].astype(np.int64))


def refine(truth: FrameBoxes, teacher: Found, overlap: float = 0.6) -> FrameBoxes:
    """Annotated boxes, each halfway towards the teacher's best matching box of any class; classes stay as annotated."""
    if not len(teacher) or not len(truth.labels):
        return truth
    shares = overlaps(truth.boxes, teacher.boxes)
    best = shares.argmax(1)
    close = shares.max(1) >= overlap
    middle = (truth.boxes + teacher.boxes[best]) / 2
    return FrameBoxes(np.where(close[:, None], middle, truth.boxes).astype(np.float32), truth.labels, truth.crowd)
