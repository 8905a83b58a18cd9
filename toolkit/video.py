"""Decode video files with OpenCV, and turn a file into the pictures that a model would see.

The same decoder and the same sampler serve training, evaluation and the camera loop, so a clip looks to
the student in training exactly as it will look to it on the board.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.preprocess import FrameSampler, Preprocess

__all__ = ["VIDEO_SUFFIXES", "Span", "extent", "read_frames", "read_pictures", "within"]

#: First and last second of a clip inside its file, None for the file's own; the end does not belong to the clip.
Span = tuple[float | None, float | None]

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"})
_DEFAULT_FPS = 25.0
_EPSILON_S = 1e-3


def read_frames(path: Path) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
    """Yield (timestamp in seconds, BGR frame uint8 (H, W, 3)) for every frame of the file.

    Raises:
        UserError: the file is missing, is not a video, or holds no frame.
    """
    cv2 = opencv()
    with _opened(path) as (capture, fps):
        count, last_s = 0, -1.0
        while True:
            good, frame = capture.read()
            if not good:
                break
            stamp_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
            # Some containers carry no timestamps (always 0) or jump back: fall back to the nominal rate.
            if count and stamp_s <= last_s:
                stamp_s = last_s + 1.0 / fps
            yield stamp_s, np.asarray(frame, np.uint8)
            count, last_s = count + 1, stamp_s
        if not count:
            raise UserError(f"video {path} holds no frame that OpenCV can decode: it is empty, truncated or of a codec "
                            "that OpenCV lacks; re-encode or remove it")  # fmt: skip


def extent(path: Path) -> tuple[int, float]:
    """(frames, frames per second) as the file's header says; nothing is decoded.

    Raises:
        UserError: the file is missing or is not a video.
    """
    with _opened(path) as (capture, fps):
        return max(0, int(capture.get(opencv().CAP_PROP_FRAME_COUNT))), fps


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, float]]:
    """OpenCV's capture and its frames per second."""
    if not path.is_file():
        raise UserError(f"video {path} does not exist: check the path")
    cv2 = opencv()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise UserError(f"video {path} cannot be read: it is damaged or not a video; re-encode or remove it")
        fps = capture.get(cv2.CAP_PROP_FPS)
        yield capture, fps if 0 < fps < 1000 else _DEFAULT_FPS
    finally:
        capture.release()


def within(span: Span, stamp_s: float) -> bool:
    """Whether a frame shown at ``stamp_s`` belongs to the clip (to a millisecond, as timestamps are rounded)."""
    start_s, end_s = span
    return (start_s is None or stamp_s >= start_s - _EPSILON_S) and (end_s is None or stamp_s < end_s - _EPSILON_S)


def read_pictures(
    path: Path, preprocess: Preprocess, limit: int | None = None, span: Span = (None, None)
) -> npt.NDArray[np.uint8]:
    """Decode a file into the model's pictures: uint8 RGB (T, H, W, 3) at ``preprocess.fps``.

    ``limit`` stops after that many pictures; ``span`` takes a part of the file only.

    Raises:
        UserError: as :func:`read_frames`, or the file has no frame in ``span``.
    """
    sampler = FrameSampler(preprocess.fps)
    pictures: list[npt.NDArray[np.uint8]] = []
    for stamp_s, frame in read_frames(path):
        if span[1] is not None and stamp_s >= span[1]:
            break
        due = sampler.due(stamp_s) if within(span, stamp_s) else 0
        if due:
            pictures.extend([preprocess.picture(frame)] * due)
        if limit is not None and len(pictures) >= limit:
            return np.stack(pictures[:limit])
    if not pictures:
        raise UserError(f"video {path} has no frame between {span[0]} and {span[1]} s: correct the clip's times")
    return np.stack(pictures)
