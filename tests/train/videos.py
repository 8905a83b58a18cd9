"""Videos of every kind, made by PyAV: codecs, pixel formats, rotation, uneven times, sound only."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

__all__ = ["encode", "moving_frames", "remux", "sound_only"]

Frame = npt.NDArray[np.uint8]


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[Frame]:
    """RGB noise with a bright bar that moves right and a red corner: order and orientation can be told."""
    rng = np.random.default_rng(seed)
    back = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    frames = []
    for index in range(count):
        frame = back.copy()
        frame[:, (np.arange(6) + 3 * index) % width] = 230
        frame[: height // 3, : width // 3] = (250, 10, 10)
        frames.append(frame)
    return frames


def encode(
    path: Path, frames: Sequence[Frame], *, codec: str = "libx264", pixels: str = "yuv420p", fps: int = 10,
    rotation: int = 0, times_s: Sequence[float] | None = None, gop: int = 12, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write ``frames`` evenly, or at ``times_s``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pixels, gop
        stream.codec_context.thread_count = 1  # with several, x264 makes other bytes each time
        if times_s is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts = index if times_s is None else round(90000 * times_s[index])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(source: Path, path: Path) -> Path:
    """The same pictures in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return path


def sound_only(path: Path, seconds: float = 0.5) -> Path:
    """A tone without pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        wave = np.sin(np.arange(round(16000 * seconds)) / 9).astype(np.float32)
        for start in range(0, len(wave) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
