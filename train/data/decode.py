"""Decode single windows of a video with PyAV: seek, decode only what is needed, convert only what is kept.

Bit for bit the pictures of :func:`toolkit.video.read_pictures`: the same timestamps, the same
:class:`toolkit.preprocess.FrameSampler`, the same rotation and the same resizing. (Scaling inside FFmpeg would be
cheaper for large videos, but its pixels are not those that the board's OpenCV makes.)

A *tick* is a multiple of ``1 / fps`` after the first frame; picture k of a clip is the first frame at or after tick k.
"""

import bisect
import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from toolkit.errors import UnavailableDevice, UserError
from toolkit.preprocess import FrameSampler, Preprocess
from toolkit.video import Span, within

__all__ = ["Decoded", "Probe", "Timeline", "Video", "open_video"]

_DEFAULT_FPS = 25.0
#: Containers with an index of their key frames; in others a seek may land anywhere, so they are read from the start.
_INDEXED = frozenset({"mov", "mp4", "matroska", "webm", "avi"})
#: Codecs whose packets say whether other frames lean on theirs.
_LEANING = frozenset({"h264", "hevc"})
#: How to open a file of which all is known that probing would find: one packet is read, none decoded.
_PROBED = {"format": "mov", "options": {"skip_frame": "all", "analyzeduration": "1"}}
_MOST_BAD_PACKETS = 1000

av.logging.set_level(None)


#: uint8 RGB (..., H, W, 3).
Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Probe:
    """What FFmpeg learns by decoding the first frames whenever it opens a file: a twelfth of the time of a short one.

    start: the first timestamp, in the stream's own units. rate: frames per second, 0 if unknown. reorder: how many
    frames the decoder holds back to show them in order.
    """

    start: int
    rate: float
    reorder: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """When frames are shown, in seconds from the stream's start: all of them, and the key frames.

    ``regular`` is False where timestamps are absent or doubled: such a file is only read from its start.
    ``probe`` is there if it says all that opening the file again would find.
    """

    times_s: npt.NDArray[np.float64]
    keys_s: npt.NDArray[np.float64]
    regular: bool
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """pictures: T of uint8 RGB (H, W, 3); frames: int64 (T,), each one's frame number; size: (H, W) of the video."""

    pictures: Sequence[npt.NDArray[np.uint8]]
    frames: npt.NDArray[np.int64]
    size: tuple[int, int]


class _Found:
    """Pictures as they are found, and when each was shown."""

    def __init__(self, preprocess: Preprocess, out: Pictures | None) -> None:
        self.pictures: list[Pictures] = []
        self.times_s: list[float] = []
        self._preprocess, self._out = preprocess, out

    def add(self, frame_HWC: Pictures, stamp_s: float, count: int) -> tuple[int, int]:
        """A frame that answers for ``count`` ticks; its size comes back."""
        place, out = len(self.pictures), self._out
        if out is None:
            self.pictures += [self._preprocess.scaled(frame_HWC)] * count
        else:
            self._preprocess.scaled(frame_HWC, out[place])
            out[place + 1 : place + count] = out[place]
            self.pictures.extend(out[place : place + count])
        self.times_s += [stamp_s] * count
        return int(frame_HWC.shape[0]), int(frame_HWC.shape[1])


class Video:
    """One open video. Use it through :func:`open_video`."""

    def __init__(self, container: Any, name: str, timeline: Timeline | None) -> None:
        self.name = name
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # parallelism is one worker a process, not threads in each
        self._reformatter = av.video.reformatter.VideoReformatter()
        base = self._stream.time_base
        self._base = base.numerator / base.denominator
        self._probe = (timeline and timeline.probe) or self._probed()
        self._start, self._stream.codec_context.reorder_depth = self._probe.start, self._probe.reorder
        self._needed: frozenset[int] | None = None  # with it, other frames that none leans on are not decoded
        self.timeline = timeline or self._scan()
        # One packet, one frame: only then a packet's time says which frame it makes.
        self._skips = self.timeline.regular and self._stream.codec_context.name in _LEANING

    def ticks(self, fps: float, span: Span = (None, None)) -> int:
        """How many pictures the clip has at ``fps``.

        Raises:
            UserError: no frame lies in ``span``.
        """
        times_s = self._shown(span)
        return max(1, FrameSampler(fps, start_s=float(times_s[0])).due(float(times_s[-1])))

    def pictures(
        self, ticks: Sequence[int], preprocess: Preprocess, span: Span = (None, None), out: Pictures | None = None
    ) -> Decoded:
        """The pictures at ``ticks``, which rise. A tick after the last frame repeats it.

        ``out``, uint8 (T, H, W, 3), is where to put them, and saves a copy of each.

        Raises:
            UserError: nothing can be decoded.
        """
        shown_s = self._shown(span)
        start_s = float(shown_s[0])
        sampler = FrameSampler(preprocess.fps, start_s=start_s, done=ticks[0])
        needed = sampler.first(shown_s, ticks)
        self._needed = self._stamps(shown_s[np.minimum(needed, len(shown_s) - 1)]) if self._skips else None
        found = _Found(preprocess, out)
        reached, last, size = ticks[0], None, (0, 0)
        for stamp_s, frame in self._from(start_s + ticks[0] / preprocess.fps):
            if span[1] is not None and stamp_s >= span[1]:
                break
            if not within(span, stamp_s):
                continue
            reached, last = reached + sampler.due(stamp_s), (stamp_s, frame)
            wanted = bisect.bisect_left(ticks, reached) - len(found.pictures)
            if wanted:
                size = found.add(self._array(frame), stamp_s, wanted)
            if len(found.pictures) == len(ticks):
                break
        if last is None:
            raise UserError(f"video {self.name} holds no frame: it is empty or truncated; re-encode or remove it")
        if len(found.pictures) < len(ticks):
            size = found.add(self._array(last[1]), last[0], len(ticks) - len(found.pictures))
        numbers = np.searchsorted(self.timeline.times_s, np.asarray(found.times_s) - 1e-6)
        return Decoded(found.pictures, numbers, size)

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(timestamp in seconds, frame) of every frame, with the timestamps of ``toolkit.video.read_frames``."""
        rate = self._probe.rate if 0 < self._probe.rate < 1000 else _DEFAULT_FPS
        last_s, count = -1.0, 0
        for frame in self._decoded():
            stamp_s = self._seconds(frame.pts)
            if count and stamp_s <= last_s:
                stamp_s = last_s + 1.0 / rate
            yield stamp_s, frame
            last_s, count = stamp_s, count + 1

    def between(self, span: Span) -> Iterator[tuple[float, Any]]:
        """(timestamp, frame) of the frames that belong to the clip."""
        self._needed = None
        for stamp_s, frame in self._from(span[0] or 0.0):
            if span[1] is not None and stamp_s >= span[1]:
                return
            if within(span, stamp_s):
                yield stamp_s, frame

    def _seconds(self, pts: int | None) -> float:
        if pts is None:
            return 0.0
        # The very arithmetic of OpenCV (milliseconds in between), so that no tick is rounded another way.
        return float((pts - self._start) * self._base * 1000.0 / 1000.0)

    def _stamps(self, times_s: npt.NDArray[np.float64]) -> frozenset[int]:
        """The other way round: what the file says for these times."""
        return frozenset((np.rint(times_s / self._base).astype(np.int64) + self._start).tolist())

    def _shown(self, span: Span) -> npt.NDArray[np.float64]:
        times_s = self.timeline.times_s
        if span != (None, None):
            times_s = times_s[[within(span, float(t)) for t in times_s]]
            if not len(times_s):
                raise UserError(
                    f"video {self.name} has no frame between {span[0]} and {span[1]} s: correct the clip's times"
                )
        return times_s

    def _scan(self) -> Timeline:
        """Read the packets without decoding them, and the first frame."""
        first_s = next((stamp_s for stamp_s, _ in self.frames()), None)
        if first_s is None:
            raise UserError(f"video {self.name} holds no frame: it is empty or truncated; re-encode or remove it")
        self._rewind()
        stamps, keys, whole = [], [], True
        with contextlib.suppress(av.error.FFmpegError):  # a truncated file: what is there is there
            for packet in self._container.demux(self._stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    whole = False
                    break
                stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        self._rewind()
        times_s = np.asarray([t for t in map(self._seconds, sorted(stamps)) if t >= first_s])
        if not whole or not len(times_s) or len(set(stamps)) != len(stamps):
            times_s = np.asarray([stamp_s for stamp_s, _ in self.frames()])
            self._rewind()
            return Timeline(times_s, times_s[:1], False)
        keys_s = np.asarray([t for t in map(self._seconds, sorted(keys)) if t >= first_s] or [first_s])
        names = set(self._container.format.name.split(","))
        quick = "mov" in names and self._stream.codec_context.name in _LEANING
        return Timeline(times_s, keys_s, bool(_INDEXED & names), self._probe if quick else None)

    def _probed(self) -> Probe:
        stream = self._stream
        return Probe(stream.start_time or 0, float(stream.guessed_rate or 0), stream.codec_context.reorder_depth)

    def _from(self, time_s: float) -> Iterator[tuple[float, Any]]:
        """Frames from a key frame before ``time_s`` on, at the latest."""
        keys_s = self.timeline.keys_s
        place = int(np.searchsorted(keys_s, time_s - 0.01, side="right")) - 1
        if not self.timeline.regular or place < 1:
            self._rewind()
            yield from self.frames()
            return
        base = self._stream.time_base
        target = math.floor(keys_s[place] / base + 0.5) + self._start
        self._container.seek(target, stream=self._stream, backward=True)
        checked = False
        for frame in self._decoded():
            stamp_s = self._seconds(frame.pts)
            if frame.pts is None or (not checked and stamp_s > time_s):  # landed too late
                self._rewind()
                yield from self.frames()
                return
            checked = True
            if frame.pts >= target:  # what is shown before the key frame may lean on frames that were not decoded
                yield stamp_s, frame

    def _rewind(self) -> None:
        self._container.seek(min(0, self._start), stream=self._stream)

    def _decoded(self) -> Iterator[Any]:
        """Decoded frames; damaged packets are passed over, as OpenCV does."""
        bad, packets, context = 0, self._container.demux(self._stream), self._stream.codec_context
        skipping = context.skip_frame = "DEFAULT"
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.FFmpegError):
                return
            if self._needed is not None and packet.pts is not None:
                skip = "DEFAULT" if packet.pts in self._needed else "NONREF"
                if skip != skipping:
                    skipping = context.skip_frame = skip
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                bad += 1
                if bad > _MOST_BAD_PACKETS:
                    return

    def _array(self, frame: Any) -> npt.NDArray[np.uint8]:
        """uint8 RGB (H, W, 3), turned upright."""
        # Straight to RGB where that is OpenCV's BGR the other way round: with more bits its dithering is not.
        order = "rgb24" if frame.format.name == "yuv420p" else "bgr24"
        # OpenCV's choice of filter; it matters where chroma is not 8-bit.
        plane = self._reformatter.reformat(frame, format=order, interpolation="BICUBIC", threads=1).planes[0]
        array = np.ndarray((plane.height, plane.width, 3), np.uint8, plane, 0, (plane.line_size, 3, 1))
        array = array if order == "rgb24" else np.ascontiguousarray(array[..., ::-1])
        turns = round(frame.rotation / 90) % 4
        return np.rot90(array, turns) if turns else array


@contextlib.contextmanager
def open_video(
    source: Path | bytes, name: str, timeline: Timeline | None = None, device: str = "cpu"
) -> Iterator[Video]:
    """Open a file, or the bytes of one; its ``timeline`` need not be read again if it is known.

    Raises:
        UserError: absent, damaged, or without a picture stream.
        UnavailableDevice: ``device`` cannot decode here.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"video {name} does not exist: check the path")
    options, probed = _acceleration(device), timeline is not None and timeline.probe is not None
    try:
        container = av.open(
            str(source) if isinstance(source, Path) else io.BytesIO(source),
            **(_PROBED if probed and not options else options),
        )
    except (av.error.FFmpegError, ValueError, UnicodeError) as error:
        if options and _opens(source):
            raise UnavailableDevice(
                f"video {name} cannot be decoded on {device} here ({error}): set data.device"
            ) from error
        raise UserError(f"video {name} cannot be read: it is damaged or not a video; re-encode or remove it") from error
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise UserError(f"video {name} holds no pictures, only {kinds}: remove it")
        try:
            yield Video(container, name, timeline)
        except av.error.FFmpegError as error:
            raise UserError(f"video {name} cannot be decoded ({error.strerror}): re-encode or remove it") from error


def _opens(source: Path | bytes) -> bool:
    """Whether the file is fine, so that the fault is the device's."""
    try:
        av.open(str(source) if isinstance(source, Path) else io.BytesIO(source)).close()
    except (av.error.FFmpegError, ValueError, UnicodeError):
        return False
    return True


def _acceleration(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {}
    from av.codec.hwaccel import HWAccel, hwdevices_available

    known = hwdevices_available()
    if device not in known:
        raise UnavailableDevice(
            f"this PyAV decodes on {', '.join(['cpu', *known])}, not on {device!r}: set data.device"
        )
    return {"hwaccel": HWAccel(device_type=device, allow_software_fallback=False)}
