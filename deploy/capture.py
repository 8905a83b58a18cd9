"""Frames from a USB camera, a file or a network stream, with their timestamps.

A *live* source never waits for the consumer: a reader thread keeps only the newest frame, and frames that were
overwritten are counted as dropped. A *recorded* source gives every frame, unless it is played in real time: then
it behaves like a camera. Files are decoded by :func:`toolkit.video.read_frames`, the decoder of training.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.newest import Feed, Newest
from deploy.reconnect import Patience, Reconnecting
from deploy.source import Grabbed, Lost, Picture, Source
from devices.probe import probe
from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.video import read_frames

__all__ = ["Grabbed", "Lost", "Source", "open_source"]

_URL = re.compile(r"^(rtsps?|https?|rtmps?|udp|tcp|rtp|srt)://", re.IGNORECASE)
_CAMERA = re.compile(r"^(?:/dev/video)?(\d{1,4})$")
_DEFAULT_FPS = 30.0


def open_source(
    text: str, *, realtime: bool = False, open_timeout_s: float = 10, stall_timeout_s: float = 5, reconnect_s: float = 0
) -> Source:
    """Open ``text``: a camera (``0``, ``/dev/video0``, a link to it), a URL (``rtsp://...``, ``http://...``) or a file.

    ``realtime`` plays a recording at its own speed, dropping what the model cannot follow. A camera or stream that is
    lost later is looked for during ``reconnect_s`` (``inf``: for good); a recording is not.

    Raises:
        UserError: no such file, or the camera or URL does not open (within ``open_timeout_s``).
    """

    def live(first: Feed, reopened: Callable[[], Any], patience_s: float) -> Source:
        def again() -> Iterator[Grabbed]:
            capture = reopened()
            if capture.isOpened():
                yield from _live(capture, patience_s)
            capture.release()

        if not reconnect_s > 0:
            return Newest(first, stall_timeout_s)
        return Reconnecting(first, again, Patience(reconnect_s), open_timeout_s, stall_timeout_s)

    if _index(text) is not None:
        if realtime:
            raise UserError(f"camera {text} has no other speed than its own: --realtime is for files, leave it out")
        return live(_open_camera(text, stall_timeout_s), lambda: _camera(text), stall_timeout_s)
    if _URL.match(text):
        opened = _open_url(text, realtime, open_timeout_s, stall_timeout_s)
        if not isinstance(opened, Feed):
            return opened
        return live(opened, lambda: _stream(text, open_timeout_s, stall_timeout_s), 0.0)
    path = Path(text)
    if not path.is_file():
        raise UserError(f"source {text!r} is no camera index, no URL and no file: try 0, rtsp://... or a video file")
    capture = opencv().VideoCapture(str(path), opencv().CAP_FFMPEG)
    fps = _fps(capture)
    capture.release()
    recording = _Recording(str(path), fps, _timed(read_frames(path)))
    return Newest(recording.paced(), stall_timeout_s) if realtime else recording


def _index(text: str) -> int | None:
    """The number of a camera; a link that udev keeps (``/dev/v4l/by-id/...``) is followed to where it points now."""
    found = _CAMERA.match(text) or _CAMERA.match(os.path.realpath(text))
    return int(found[1]) if found else None


def _camera(text: str) -> Any:
    cv2, index = opencv(), _index(text)
    # A capture of nothing is not opened: the link of a camera that was unplugged is gone with it.
    capture = cv2.VideoCapture() if index is None else cv2.VideoCapture(index)
    if capture.isOpened():
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def _open_camera(text: str, patience_s: float) -> Feed:
    capture = _camera(text)
    if not capture.isOpened():
        capture.release()
        raise UserError(f"camera {text} does not open: {_cameras_here()}")
    return Feed(f"camera {text}", _fps(capture), _live(capture, patience_s))


def _cameras_here() -> str:
    cameras = [device for device in probe() if device.kind == "camera"]
    if not cameras:
        return "no camera is connected to this machine; plug one in, or give a video file or an rtsp:// URL"
    listed = ", ".join(f"{c.name} ({c.title}{'' if c.usable else ', no permission'})" for c in cameras)
    return f"it is in use, unplugged or forbidden; cameras here: {listed}"


def _stream(text: str, open_timeout_s: float, stall_timeout_s: float) -> Any:
    cv2 = opencv()
    # Without these two limits FFmpeg may wait for an unreachable host for minutes.
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(open_timeout_s * 1000)]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(stall_timeout_s * 1000)]
    return cv2.VideoCapture(text, cv2.CAP_FFMPEG, limits)


def _open_url(text: str, realtime: bool, open_timeout_s: float, stall_timeout_s: float) -> Source | Feed:
    capture = _stream(text, open_timeout_s, stall_timeout_s)
    name = _without_password(text)
    if not capture.isOpened():
        capture.release()
        raise UserError(
            f"stream {name} does not open within {open_timeout_s:g} s: check the address, the network, user and "
            "password, and that the camera is on"
        )
    fps = _fps(capture)
    if capture.get(opencv().CAP_PROP_FRAME_COUNT) > 0:  # a file on a server, not a camera
        recording = _Recording(name, fps, _timed(_stamped(capture, fps)))
        return Newest(recording.paced(), stall_timeout_s) if realtime else recording
    if realtime:
        capture.release()
        raise UserError(f"stream {name} has no other speed than its own: --realtime is for files, leave it out")
    return Feed(name, fps, _live(capture, 0.0))


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

    def paced(self) -> Feed:
        """The same frames, each held back until its time has come."""
        return Feed(self.name, self.fps, self._hold(), finite=True)

    def _hold(self) -> Iterator[Grabbed]:
        start: float | None = None
        for grabbed in self._frames:
            start = time.perf_counter() - grabbed.stamp_s if start is None else start
            time.sleep(max(0.0, start + grabbed.stamp_s - time.perf_counter()))
            yield Grabbed(grabbed.frame, grabbed.stamp_s, time.perf_counter(), grabbed.capture_ms)
