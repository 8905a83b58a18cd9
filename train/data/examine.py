"""Decode one clip and keep what tells it from others: counts, two hashes, its look and its trace, or what is wrong."""

import hashlib
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.video import Span
from train.data.clip import Clip
from train.data.decode import open_video
from train.data.formats.shards import read_member
from train.data.likeness import Look, look_of
from train.data.opening import read_stills
from train.data.trace import GRID, Trace, Tracer

__all__ = ["Seen", "examine"]

#: Pictures of a folder that are decoded at a time.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What one clip is: frames and pictures it has, its two hashes, its look and trace; or what is wrong."""

    frames: int = 0
    pictures: int = 0
    file: str = ""
    content: str = ""
    look: Look | None = None
    trace: Trace | None = None
    wrong: str = ""


def examine(clip: Clip, fps: float, looks: bool) -> Seen:
    """Decode a clip; pictures are counted at ``fps``, and without ``looks`` only frames and hashes are taken."""
    try:
        return _stills(clip, fps, looks) if clip.pictures else _video(clip, fps, looks)
    except UserError as error:
        return Seen(wrong=str(error))
    except OSError as error:
        return Seen(wrong=f"video {clip.name} cannot be read ({error.strerror}): check its permissions")


def _video(clip: Clip, fps: float, looks: bool) -> Seen:
    if clip.member is None:
        if clip.path.is_file() and clip.path.stat().st_size == 0:
            raise UserError(f"video {clip.name} holds nothing (0 bytes): copy it again or remove it")
        if clip.path.is_file():
            clip.path.open("rb").close()  # forbidden files are told apart from damaged ones
    source = clip.path if clip.member is None else read_member(clip.path, clip.member)
    hashed, shown = hashlib.sha256(), _Shown()
    scaler = av.video.reformatter.VideoReformatter()
    with open_video(source, clip.name) as video:
        pictures = video.ticks(fps, clip.span)
        for stamp_s, frame in video.between(clip.span):
            small = scaler.reformat(frame, width=GRID, height=GRID, format="gray", threads=1).to_ndarray()
            turns = round(frame.rotation / 90) % 4
            hashed.update(small.tobytes())
            hashed.update(bytes([turns]))
            shown.add(np.rot90(small, turns) if looks else None, stamp_s)
    if not shown.times_s:
        raise UserError(f"video {clip.name} holds no frame: it is empty or truncated; re-encode or remove it")
    content = hashed.hexdigest()
    return Seen(len(shown.times_s), pictures, _file_hash(source, clip.span), content, *shown.done())


def _stills(clip: Clip, fps: float, looks: bool) -> Seen:
    """Frames as picture files, one a tick: the hash is of their pixels."""
    cv2, hashed, shown = opencv(), hashlib.sha256(), _Shown()
    for start in range(0, clip.pictures, _AT_ONCE):
        for frame in read_stills(clip, range(start, min(start + _AT_ONCE, clip.pictures))):
            hashed.update(frame.tobytes())
            small = cv2.resize(frame, (GRID, GRID), interpolation=cv2.INTER_AREA) if looks else None
            grey = None if small is None else np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
            shown.add(grey, len(shown.times_s) / fps)
    content, count = hashed.hexdigest(), len(shown.times_s)
    return Seen(count, count, content, content, *shown.done())


class _Shown:
    """What was shown when: makes the look and the trace of a clip from its frames."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._small: list[npt.NDArray[np.uint8]] = []
        self._tracer = Tracer()

    def add(self, frame: npt.NDArray[np.uint8] | None, time_s: float) -> None:
        """A frame of 64x64 grey; without it, it is only counted."""
        self.times_s.append(time_s)
        if frame is not None:
            half = frame.reshape(GRID // 2, 2, GRID // 2, 2).mean((1, 3), dtype=np.float32)
            self._small.append(np.rint(half).astype(np.uint8))
            self._tracer.add(frame, time_s)

    def done(self) -> tuple[Look | None, Trace | None]:
        """Neither without frames."""
        return (look_of(np.stack(self._small), self.times_s), self._tracer.done()) if self._small else (None, None)


def _file_hash(source: Any, span: Span) -> str:
    if isinstance(source, bytes):
        digest = hashlib.sha256(source).hexdigest()
    else:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest} {span}"
