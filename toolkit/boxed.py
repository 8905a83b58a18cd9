"""Decode footage with boxes into what a model sees: pictures at its frame rate, boxes in the picture's pixels.

Training and evaluation share it, with the same preprocessing and sampler as the camera loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.coco import Footage, FrameBoxes
from toolkit.cv import opencv
from toolkit.detection import to_picture
from toolkit.errors import UserError
from toolkit.preprocess import FrameSampler, Preprocess
from toolkit.video import read_frames

__all__ = ["BoxedPicture", "read_boxed"]


@dataclass(frozen=True, slots=True)
class BoxedPicture:
    """picture: uint8 RGB (H, W, 3); truth: boxes in its pixels, or None where the frame is not annotated.

    ``frame`` is the source frame, uint8 BGR.
    """

    picture: npt.NDArray[np.uint8]
    truth: FrameBoxes | None
    frame: npt.NDArray[np.uint8]


def read_boxed(footage: Footage, preprocess: Preprocess) -> Iterator[BoxedPicture]:
    """Yield one entry per step of the model, in order.

    Raises:
        UserError: the file cannot be read, has another size than the annotations say, or fewer frames.
    """
    sampler, last = FrameSampler(preprocess.fps), -1
    for index, (stamp_s, frame) in enumerate(_frames(footage)):
        last = index
        rows, cols = frame.shape[:2]
        if footage.size is not None and footage.size != (rows, cols):
            height, width = footage.size
            raise UserError(f"{footage.path} is {cols}x{rows} pixels, its annotations are for {width}x{height}")
        due = sampler.due(stamp_s)
        if not due:
            continue
        truth, picture = footage.frames.get(index), preprocess.picture(frame)
        if truth is not None:
            truth = _moved(truth, preprocess, rows, cols)
        # A slow source repeats its frame; the answer to the last repeat is the one that is compared.
        for repeat in range(due):
            yield BoxedPicture(picture, truth if repeat == due - 1 else None, frame)
    if max(footage.frames) > last:
        raise UserError(f"{footage.path} has {last + 1} frames, its annotations name frame {max(footage.frames)}")


def _frames(footage: Footage) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
    if not footage.still:
        yield from read_frames(footage.path)
        return
    picture = opencv().imread(str(footage.path)) if footage.path.is_file() else None
    if picture is None:
        raise UserError(f"picture {footage.path} is missing or not a picture: check file_name in the annotations")
    yield 0.0, np.asarray(picture, np.uint8)


def _moved(truth: FrameBoxes, preprocess: Preprocess, rows: int, cols: int) -> FrameBoxes:
    """Into the picture; a box of which the crop leaves less than a pixel is gone."""
    boxes = to_picture(truth.boxes, preprocess, rows, cols)
    good = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    crowd = None if truth.crowd is None else _moved(truth.crowd, preprocess, rows, cols)
    return FrameBoxes(boxes[good], truth.labels[good], crowd)
