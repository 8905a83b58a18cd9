"""Frames from a USB camera, a file or a network stream, with their timestamps.

A *live* source never waits for the consumer: a reader thread keeps only the newest frame, and frames that were
overwritten are counted as dropped. A *recorded* source gives every frame, unless it is played in real time: then
it behaves like a camera. Files are decoded by :func:`toolkit.video.read_frames`, the decoder of training.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from devices.probe import probe
from toolkit.cv import opencv
from toolkit.errors import UnavailableDevice, UserError
from toolkit.video import read_frames

__all__ = ["Grabbed", "Source", "open_source"]

Picture = npt.NDArray[np.uint8]
_URL = re.compile(r"^(rtsps?|https?|rtmps?|udp|tcp|rtp|srt)://", re.IGNORECASE)
_CAMERA = re.compile(r"^(?:/dev/video)?(\d{1,4})$")
_DEFAULT_FPS = 30.0


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame. frame: uint8 BGR (H, W, 3); stamp_s: seconds on the source's own clock; arrived_s: perf_counter.

    ``capture_ms`` is the time spent decoding (for a live source without the wait for the camera), ``dropped`` the
    number of frames that were skipped since the one before.
    """

    frame: Picture
    stamp_s: float
    arrived_s: float
    capture_ms: float
    dropped: int = 0


class Source(Protocol):
    """An opened source: iterate over it once, then close it."""

    name: str
    live: bool
    fps: float

    def __iter__(self) -> Iterator[Grabbed]:
        """Yield frames until the source ends.

        Raises:
            UnavailableDevice: a live source stopped.
        """
        ...

    def close(self) -> None:
        """Let go of the device; closing twice is harmless."""
        ...


def open_source(text: str, *, realtime: bool = False, open_timeout_s: float = 10, stall_timeout_s: float = 5) -> Source:
    """Open ``text``: a camera index (``0``, ``/dev/video0``), a URL (``rtsp://...``, ``http://...``) or a file.

    ``realtime`` plays a recording at its own speed, dropping what the model cannot follow.

    Raises:
        UserError: no such file, or the camera or URL does not open (within ``open_timeout_s``).
    """
    camera = _CAMERA.match(text)
    if camera and realtime:
        raise UserError(f"camera {text} has no other speed than its own: --realtime is for files, leave it out")
    if camera:
        return _Newest(_open_camera(text, int(camera[1]), stall_timeout_s), stall_timeout_s)
    if _URL.match(text):
        return _open_url(text, realtime, open_timeout_s, stall_timeout_s)
    path = Path(text)
    if not path.is_file():
        raise UserError(f"source {text!r} is no camera index, no URL and no file: try 0, rtsp://... or a video file")
    capture = opencv().VideoCapture(str(path), opencv().CAP_FFMPEG)
    fps = _fps(capture)
    capture.release()
    recording = _Recording(str(path), fps, _timed(read_frames(path)))
    return _Newest(recording.paced(), stall_timeout_s) if realtime else recording


def _open_camera(text: str, index: int, patience_s: float) -> "_Feed":
    cv2 = opencv()
    capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        capture.release()
        raise UserError(f"camera {text} does not open: {_cameras_here()}")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return _Feed(f"camera {index}", _fps(capture), _live(capture, patience_s))


def _cameras_here() -> str:
    cameras = [device for device in probe() if device.kind == "camera"]
    if not cameras:
        return "no camera is connected to this machine; plug one in, or give a video file or an rtsp:// URL"
    listed = ", ".join(f"{c.name} ({c.title}{'' if c.usable else ', no permission'})" for c in cameras)
    return f"it is in use, unplugged or forbidden; cameras here: {listed}"


def _open_url(text: str, realtime: bool, open_timeout_s: float, stall_timeout_s: float) -> Source:
    cv2 = opencv()
    # Without these two limits FFmpeg may wait for an unreachable host for minutes.
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(open_timeout_s * 1000)]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(stall_timeout_s * 1000)]
    capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, limits)
    name = _without_password(text)
    if not capture.isOpened():
        capture.release()
        raise UserError(
            f"stream {name} does not open within {open_timeout_s:g} s: check the address, the network, user and "
            "password, and that the camera is on"
        )
    fps = _fps(capture)
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:  # a file on a server, not a camera
        recording = _Recording(name, fps, _timed(_stamped(capture, fps)))
        return _Newest(recording.paced(), stall_timeout_s) if realtime else recording
    if realtime:
        capture.release()
        raise UserError(f"stream {name} has no other speed than its own: --realtime is for files, leave it out")
    return _Newest(_Feed(name, fps, _live(capture, 0.0)), stall_timeout_s)


def _without_password(url: str) -> str:
    url = re.sub(r"://[^/]*@", "://***@", url)
    return re.sub(r"([?&]\w*(?:pass|pwd|pw|token|key|auth)\w*=)[^&#]*", r"\1***", url, flags=re.IGNORECASE)


def _fps(capture: Any) -> float:
    fps = float(capture.get(opencv().CAP_PROP_FPS))
    return fps if 0 < fps < 1000 else _DEFAULT_FPS


def _stamped(capture: Any, fps: float) -> Iterator[tuple[float, Picture]]:
    """(timestamp, frame) of a recording behind a URL, by the rule of ``read_frames``."""
    last_s = -1.0
    try:
        while True:
            good, frame = capture.read()
            if not good:
                return
            stamp_s = capture.get(opencv().CAP_PROP_POS_MSEC) / 1000.0
            last_s = stamp_s if stamp_s > last_s else last_s + 1.0 / fps
            yield last_s, np.asarray(frame, np.uint8)
    finally:
        capture.release()


def _timed(frames: Iterator[tuple[float, Picture]]) -> Iterator[Grabbed]:
    """Measure how long each frame took to decode."""
    while True:
        before = time.perf_counter()
        item = next(frames, None)
        if item is None:
            return
        now = time.perf_counter()
        yield Grabbed(item[1], item[0], now, (now - before) * 1000)


def _live(capture: Any, patience_s: float) -> Iterator[Grabbed]:
    """Frames of an opened camera, stamped by the monotonic clock; ends when it gave none for ``patience_s``.

    A USB camera may lose single frames; a network stream that failed once never recovers (patience 0).
    """
    start = last = time.perf_counter()
    first = True
    try:
        while True:
            good = capture.grab()
            arrived = time.perf_counter()
            good, frame = capture.retrieve() if good else (False, None)
            if good:
                start, last, first = (arrived if first else start), arrived, False
                capture_ms = (time.perf_counter() - arrived) * 1000
                yield Grabbed(np.asarray(frame, np.uint8), arrived - start, arrived, capture_ms)
            elif arrived - last >= patience_s:
                return
            else:
                time.sleep(0.02)
    finally:
        capture.release()


@dataclass(frozen=True, slots=True)
class _Feed:
    """What the reader thread reads; ``finite`` when an end is no failure."""

    name: str
    fps: float
    frames: Iterator[Grabbed]
    finite: bool = False


class _Recording:
    """Every frame of a file, as fast as the consumer takes them."""

    live = False

    def __init__(self, name: str, fps: float, frames: Iterator[Grabbed]) -> None:
        self.name, self.fps, self._frames = name, fps, frames

    def __iter__(self) -> Iterator[Grabbed]:
        return self._frames

    def close(self) -> None:
        """End the decoder."""
        with contextlib.suppress(AttributeError):
            self._frames.close()  # type: ignore[attr-defined]

    def paced(self) -> _Feed:
        """The same frames, each held back until its time has come."""
        return _Feed(self.name, self.fps, self._hold(), finite=True)

    def _hold(self) -> Iterator[Grabbed]:
        start: float | None = None
        for grabbed in self._frames:
            start = time.perf_counter() - grabbed.stamp_s if start is None else start
            time.sleep(max(0.0, start + grabbed.stamp_s - time.perf_counter()))
            yield Grabbed(grabbed.frame, grabbed.stamp_s, time.perf_counter(), grabbed.capture_ms)


class _Newest:
    """A reader thread with a single slot: the consumer always gets the newest frame."""

    live = True

    def __init__(self, feed: _Feed, stall_timeout_s: float) -> None:
        self.name, self.fps, self._finite = feed.name, feed.fps, feed.finite
        # A recording may have seconds between its frames; it ends by itself.
        self._stall_timeout_s = None if feed.finite else stall_timeout_s
        self._news = threading.Condition()
        self._slot: Grabbed | None = None
        self._missed = 0
        self._ended = self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(feed.frames,), daemon=True, name="vidon-capture")
        self._thread.start()

    def _read(self, frames: Iterator[Grabbed]) -> None:
        try:
            for grabbed in frames:
                with self._news:
                    if self._closed:
                        break
                    self._missed += self._slot is not None
                    self._slot = grabbed
                    self._news.notify()
        except Exception as error:  # handed to the consumer, which raises it
            self._error = error
        finally:
            with contextlib.suppress(AttributeError):
                frames.close()  # type: ignore[attr-defined]  # releases the device in the thread that uses it
            with self._news:
                self._ended = True
                self._news.notify()

    def __iter__(self) -> Iterator[Grabbed]:
        count = 0
        while True:
            with self._news:
                self._news.wait_for(lambda: self._slot is not None or self._ended, self._stall_timeout_s)
                grabbed, missed, self._slot, self._missed = self._slot, self._missed, None, 0
            if grabbed is None:
                self._explain_the_end(count)
                return
            count += 1
            yield Grabbed(grabbed.frame, grabbed.stamp_s, grabbed.arrived_s, grabbed.capture_ms, missed)

    def _explain_the_end(self, count: int) -> None:
        if self._error is not None:
            raise self._error
        if self._ended and self._finite:
            return
        how = "ended" if self._ended else f"gave no frame for {self._stall_timeout_s:g} s"
        raise UnavailableDevice(
            f"{self.name} stopped: it {how} after {count} frames; check cable, power and network, then start again"
        )

    def close(self) -> None:
        """Stop the reader; a reader that is stuck in the driver is left behind as a daemon."""
        with self._news:
            self._closed = True
        self._thread.join(timeout=1.0)
