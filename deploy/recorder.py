"""Encoders of the annotated video: through PyAV where it is installed, else what OpenCV's wheel has.

Browsers play H.264 (``.mp4``, ``.mov``, ``.m4v``, ``.mkv``) and VP9 (``.webm``). OpenCV's wheels hold no encoder of the
one and cannot be told to hurry with the other (0.4 s a picture of 640x580 on one core), so both come from PyAV's
libx264 and libvpx: 4 and 6 ms on one thread (benchmarks/recording.py). What has been written is on the disk at most two
seconds later and can be played even if the process is killed: ``hybrid_fragmented`` keeps an ``.mp4`` in fragments
until it is finished, and then makes a plain one of it.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.files import writing
from toolkit.progress import note

__all__ = ["SUFFIXES", "Recorder", "codec_line", "open_recorder"]

Picture = npt.NDArray[np.uint8]

# OpenCV's codecs to try in order, per container. MPEG-4 Part 2 needs no hardware and plays in every desktop player.
_OPENCV = {
    ".mp4": ("mp4v", "avc1"),
    ".mov": ("mp4v", "avc1"),
    ".m4v": ("mp4v", "avc1"),
    ".mkv": ("mp4v", "XVID"),
    ".avi": ("MJPG", "XVID"),
    ".webm": ("VP90", "VP80"),
}
_NAMES = {"mp4v": "mpeg4", "XVID": "mpeg4", "avc1": "h264", "MJPG": "mjpeg", "VP90": "vp9", "VP80": "vp8"}
_TITLES = {"h264": "H.264", "vp9": "VP9", "vp8": "VP8", "mpeg4": "MPEG-4 Part 2", "mjpeg": "Motion JPEG"}
SUFFIXES = tuple(_OPENCV)
_KEY_EVERY_S = 2.0  # what a killed process may lose


@dataclass(frozen=True, slots=True)
class _Coder:
    """An encoder of FFmpeg: ``codec`` is the format's name, the options keep a slow core in real time."""

    encoder: str
    codec: str
    options: dict[str, str]
    container: dict[str, str]


_H264 = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "b": "0", "crf": "32"}
_CLUSTERS = {"cluster_time_limit": "2000"}  # ms; what is not yet a whole cluster waits in memory
_FRAGMENTS = _Coder("libx264", "h264", _H264, {"movflags": "hybrid_fragmented"})
_PYAV = {
    ".mp4": _FRAGMENTS,
    ".mov": _FRAGMENTS,
    ".m4v": _FRAGMENTS,
    ".mkv": _Coder("libx264", "h264", _H264, _CLUSTERS),
    ".webm": _Coder("libvpx-vp9", "vp9", _VP9, _CLUSTERS),
}


class Recorder(Protocol):
    """An opened video file; ``codec`` is FFmpeg's name of the format."""

    codec: str

    def write(self, picture: Picture) -> None:
        """Append one picture (uint8 BGR of the size it was opened with).

        Raises:
            UserError: the disk does not take it, as far as the library tells.
        """
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def open_recorder(path: Path, fps: float, size: tuple[int, int]) -> Recorder:
    """Open ``path``, whose suffix chooses the container, for pictures of ``size`` (width, height).

    Raises:
        UserError: nothing here can write this kind of video, or not to this place.
    """
    suffix = path.suffix.lower()
    coder = _PYAV.get(suffix)
    if coder is not None and _has(coder.encoder):
        return _PyAV(path, fps, size, coder)
    if suffix == ".webm":
        note("OpenCV's VP9 takes some 0.4 s a picture, too long for a live camera; quick with  pip install av")
    return _OpenCV(path, fps, size)


def codec_line(codec: str) -> str:
    """What was written, for people.

    >>> codec_line("h264")
    'H.264'
    """
    title = _TITLES.get(codec, codec)
    return (
        title
        if codec in ("h264", "vp9", "vp8")
        else f"{title}, which browsers do not play; with  pip install av  an .mp4 is H.264"
    )


def _has(encoder: str) -> bool:
    """Whether PyAV is installed and was built with ``encoder``."""
    try:
        from av.codec import Codec
        from av.error import FFmpegError
    except ImportError:
        return False
    try:
        Codec(encoder, "w")
    except (FFmpegError, ValueError):
        return False
    return True


class _PyAV:
    """One encoder thread, no look-ahead: each picture is in the file's stream when ``write`` returns."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], coder: _Coder) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        self.codec, self._path = coder.codec, path
        with writing(path):
            # Without flush_packets up to 256 KiB, which may be minutes of a still scene, would wait in memory.
            self._container: Any = av.open(str(path), "w", options={**coder.container, "flush_packets": "1"})
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        stream = self._container.add_stream(coder.encoder, rate=rate, options=coder.options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.gop_size = max(1, round(_KEY_EVERY_S * fps))
        # Untagged, a browser takes pictures of 720 rows and more for BT.709 and shows other colours.
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        self._stream = stream

    def write(self, picture: Picture) -> None:
        from av import VideoFrame
        from av.video.reformatter import Colorspace

        frame = VideoFrame.from_ndarray(picture, format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)
        with writing(self._path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        with writing(self._path):
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()


class _OpenCV:
    """OpenCV's writer, which tells of no errors."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        cv2 = opencv()
        for code in _OPENCV[path.suffix.lower()]:
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, size)
            if writer.isOpened():
                self._writer, self.codec = writer, _NAMES[code]
                return
        raise UserError(f"cannot write {path}: this OpenCV has no encoder for it; try a name that ends in .avi")

    def write(self, picture: Picture) -> None:
        self._writer.write(picture)

    def close(self) -> None:
        self._writer.release()
