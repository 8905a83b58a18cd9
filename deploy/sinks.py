"""Where the camera loop puts its answers: a window, an annotated video file, or lines of JSON.

A sink takes each shown picture with what is known about it and says whether to go on. A video file is written
under a name of its own, ``NAME.partial-...``, and takes its own only when it is complete and can be read back.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from deploy.recorder import SUFFIXES, Recorder, open_recorder
from toolkit.contract import Answer, chosen
from toolkit.cv import opencv
from toolkit.detection import Found
from toolkit.errors import UserError
from toolkit.files import prove_writable, writable_dir, writing
from toolkit.preprocess import FrameSampler

__all__ = ["EventSink", "Look", "Sink", "VideoSink", "WindowSink", "check_video_file"]


@dataclass(frozen=True, slots=True)
class Look:
    """What is known at one frame. ``probabilities`` (K,) is None until the model has warmed up.

    ``frame`` counts captured frames from 0, ``steps`` is how many model steps this frame caused, ``infer_ms`` the
    time of the last one. ``boxes`` are a detector's, in pixels of the frame.
    """

    frame: int
    stamp_s: float
    steps: int
    labels: Sequence[str]
    probabilities: npt.NDArray[np.float32] | None
    infer_ms: float
    boxes: Found | None = None
    answer: Answer = "one"

    @property
    def named(self) -> tuple[str, ...]:
        """The labels that the model names: the best one, or of many all above 0.5."""
        indices = () if self.probabilities is None else chosen(self.probabilities, self.answer)
        return tuple(self.labels[index] for index in indices)

    @property
    def best(self) -> tuple[str, float] | None:
        """The most probable label and its probability."""
        if self.probabilities is None:
            return None
        index = int(self.probabilities.argmax())
        return self.labels[index], float(self.probabilities[index])


class Sink(Protocol):
    """Takes pictures and answers. ``wants_picture`` False saves the drawing."""

    wants_picture: bool

    def start(self, fps: float) -> None:
        """Get ready for a source of ``fps`` frames/s; refuses here what cannot work."""
        ...

    def put(self, picture: npt.NDArray[np.uint8] | None, look: Look) -> bool:
        """Show or write one frame (uint8 BGR); False asks the loop to stop."""
        ...

    def rest(self) -> bool:
        """The source is lost for now, there is nothing to take; asked several times a second, False stops the loop."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class WindowSink:
    """Show the picture in a window; ``q``, Escape or closing the window stops the loop."""

    wants_picture = True

    def __init__(self, title: str = "vidon") -> None:
        self._title = title
        self._opened = False
        self._last: npt.NDArray[np.uint8] | None = None

    def start(self, fps: float) -> None:
        """Open the window.

        Raises:
            UserError: there is no screen, or OpenCV was built without windows.
        """
        cure = "use --out FILE.mp4 or --headless"
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            # Qt would abort the whole process here, so this is asked before OpenCV is.
            raise UserError(f"cannot open a window: this machine has no screen (DISPLAY is not set); {cure}")
        cv2 = opencv()
        try:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise UserError(
                f"cannot open a window: this OpenCV is the headless one; install opencv-python instead of "
                f"opencv-python-headless, or {cure}"
            ) from error
        self._opened = True

    def put(self, picture: npt.NDArray[np.uint8] | None, look: Look) -> bool:
        """Show the picture and look at the keyboard."""
        opencv().imshow(self._title, picture)
        self._last = picture
        return self._wanted()

    def rest(self) -> bool:
        """Darken the last picture, which would pass for a live one, and look at the keyboard."""
        if self._last is not None:
            cv2, picture = opencv(), self._last // 4
            cv2.putText(picture, "no signal", (20, picture.shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, 2, (255,) * 3, 3)
            cv2.imshow(self._title, picture)
            self._last = None
        return self._wanted()

    def _wanted(self) -> bool:
        cv2 = opencv()
        key = cv2.waitKey(1) & 0xFF
        return key not in {ord("q"), 27} and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        """Close the window."""
        if self._opened:
            opencv().destroyWindow(self._title)
            self._opened = False


def check_video_file(path: Path) -> None:
    """Whether a video can be written there, as far as its name and folder tell.

    Raises:
        UserError: unknown suffix, or a folder that cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot write {path}: unknown kind of video; use one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a video file")
    prove_writable(path.parent)


class VideoSink:
    """Write the pictures to ``path`` at the source's frame rate, so that it plays at the original speed.

    While the source is lost nothing is written: the file goes on with the first picture after it.
    """

    wants_picture = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.codec: str | None = None  # FFmpeg's name of the format, once there is a picture
        self._writer: Recorder | None = None
        self._temporary: Path | None = None
        self._size = (0, 0)
        self._fps = 0.0
        self._pace: FrameSampler | None = None
        self._written = 0

    def start(self, fps: float) -> None:
        """Check name and folder before the first frame.

        Raises:
            UserError: unknown suffix, or a folder that cannot be written to.
        """
        check_video_file(self.path)
        writable_dir(self.path.parent)
        self._fps = min(fps, 120.0)
        self._pace = FrameSampler(self._fps)

    def put(self, picture: npt.NDArray[np.uint8] | None, look: Look) -> bool:
        """Write the picture as often as its timestamp asks for: a live source may come irregularly.

        Raises:
            UserError: the disk is full; what is on it stays, under the name of the part.
        """
        assert picture is not None
        assert self._pace is not None
        if self._writer is None:
            self._open(picture)
        assert self._writer is not None
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = opencv().resize(picture, self._size)
        for _ in range(self._pace.due(look.stamp_s)):
            try:
                self._writer.write(picture)
            except UserError as error:
                raise self._abandoned(error) from error
            self._written += 1
        return True

    def rest(self) -> bool:
        """Leave the time without a source out of the file."""
        self._pace = FrameSampler(self._fps)
        return True

    def _open(self, picture: npt.NDArray[np.uint8]) -> None:
        self._size = (picture.shape[1], picture.shape[0])
        prefix = f"{self.path.stem}.partial-"
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=prefix, suffix=self.path.suffix.lower())
        os.close(handle)
        self._temporary = Path(name)
        self._temporary.chmod(0o644)
        try:
            self._writer = open_recorder(self._temporary, self._fps, self._size)
        except BaseException:
            self._discard()
            raise
        self.codec = self._writer.codec

    def _abandoned(self, error: UserError) -> UserError:
        """Let go of a file that the disk does not take; what it holds can mostly be played."""
        writer, self._writer = self._writer, None
        part, self._temporary = self._temporary, None
        assert writer is not None
        with contextlib.suppress(UserError, OSError):
            writer.close()
        return UserError(f"{error} ({part} holds the video so far)")

    def _discard(self) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def close(self) -> None:
        """Finish the file, read it back and give it its name.

        Raises:
            UserError: what was written cannot be read back (usually a full disk); nothing is left behind.
        """
        if self._writer is None or self._temporary is None:
            return
        try:
            self._writer.close()
        except UserError as error:
            raise self._abandoned(error) from error
        self._writer = None
        if not self._complete(self._temporary):
            self._discard()
            raise UserError(f"cannot write {self.path}: the video is incomplete; free some disk space and run again")
        os.replace(self._temporary, self.path)
        self._temporary = None

    def _complete(self, path: Path) -> bool:
        """OpenCV's writer reports no errors, so the finished file is opened and its frames are counted."""
        cv2 = opencv()
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            # WebM keeps no exact count: there the duration is rounded to whole milliseconds.
            return bool(capture.isOpened()) and capture.get(cv2.CAP_PROP_FRAME_COUNT) >= self._written - 1
        finally:
            capture.release()


class EventSink:
    """Write one line of JSON per answered frame: ``frame, t_s, label, confidence, probabilities, infer_ms``.

    A detector's line has ``boxes`` too: label, score and left, top, right, bottom in pixels of the frame. A model of
    many labels has ``labels``: those above 0.5, perhaps none.

    With ``changes`` only frames at which the label, or the set of many, changed are written.
    """

    wants_picture = False

    def __init__(self, stream: TextIO, changes: bool = False) -> None:
        self._stream = stream
        self._changes = changes
        self._last: set[str] | None = None

    def start(self, fps: float) -> None:
        """Nothing to prepare."""

    def put(self, picture: npt.NDArray[np.uint8] | None, look: Look) -> bool:
        """Write the line; a reader that went away (``| head``) stops the loop."""
        best, named = look.best, set(look.named)
        if best is None or look.probabilities is None or not look.steps or (self._changes and named == self._last):
            return True
        self._last = named
        shares = {label: round(float(p), 4) for label, p in zip(look.labels, look.probabilities, strict=True)}
        event: dict[str, Any] = {
            "frame": look.frame,
            "t_s": round(look.stamp_s, 3),
            "label": best[0],
            "confidence": round(best[1], 4),
            "probabilities": shares,
            "infer_ms": round(look.infer_ms, 3),
        }
        if look.answer == "many":
            event["labels"] = list(look.named)
        if look.boxes is not None:
            event["boxes"] = _rows(look.boxes, look.labels)
        try:
            with writing(Path("to standard output")):
                self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
                self._stream.flush()
        except BrokenPipeError:
            return False
        return True

    def rest(self) -> bool:
        """The first answer after a gap is news, even if it is the last one's label again."""
        self._last = None
        return True

    def close(self) -> None:
        """The stream belongs to the caller."""


def _rows(found: Found, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as plain data."""
    return [
        {"label": labels[label], "score": round(score, 4), "box": [round(side, 1) for side in box]}
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
