"""Cut the demo's footage out of the Intel sample videos and find, by optical flow, what moves how in it.

    python benchmarks/make_footage.py FOLDER_OF_SAMPLE_VIDEOS

writes ``toolkit/assets/footage/*.mp4`` (short, 320x180, 10 frames/s) and ``windows.json``: square crops of 8
frames in which everything that moves goes one way (Farneback flow, by four axes). Run once; the result is
committed and was checked by eye. Source: github intel-iot-devkit/sample-videos at 5797888, CC BY 4.0.
"""

import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from toolkit.files import write_text
from toolkit.preprocess import FrameSampler
from toolkit.video import read_frames

OUT = Path(__file__).resolve().parents[1] / "toolkit" / "assets" / "footage"
FPS, FRAMES, WIDTH, HEIGHT = 10, 8, 320, 180
# Splits are disjoint times of each video, with a gap of seconds in between: (video, split, start s, end s).
CUTS = (
    ("one-by-one-person-detection", "train", 5.0, 9.0),
    ("one-by-one-person-detection", "train", 16.5, 24.5),
    ("one-by-one-person-detection", "train", 42.0, 52.0),
    ("one-by-one-person-detection", "train", 66.0, 71.0),
    ("one-by-one-person-detection", "train", 73.5, 77.0),
    ("one-by-one-person-detection", "val", 83.5, 88.0),
    ("one-by-one-person-detection", "val", 91.5, 96.0),
    ("one-by-one-person-detection", "test", 116.0, 126.5),
    ("one-by-one-person-detection", "test", 132.0, 137.5),
    ("car-detection", "train", 3.5, 9.0),
    ("car-detection", "val", 14.0, 19.5),
    ("car-detection", "test", 24.0, 28.5),
    ("bottle-detection", "train", 4.0, 20.0),
    ("bottle-detection", "val", 22.0, 28.0),
    ("bottle-detection", "test", 30.0, 38.0),
)
AXES = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "towards": (0.0, 1.0), "away": (0.0, -1.0)}
Frames = list[npt.NDArray[np.uint8]]


def sampled(video: Path) -> Frames:
    """Every frame of the video at FPS, scaled to 320x180."""
    sampler, frames = FrameSampler(FPS), []
    for stamp_s, frame in read_frames(video):
        small = cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        frames += [np.asarray(small, np.uint8)] * sampler.due(stamp_s)
    return frames


def encode(path: Path, frames: Frames) -> None:
    """H.264, visually near lossless at this size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "24", "preset": "veryslow", "g": "40"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())


def flows(frames: Frames) -> npt.NDArray[np.float32]:
    """Optical flow (T - 1, H, W, 2) in pixels a frame."""
    grey = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (5, 5), 0) for frame in frames]
    pairs = itertools.pairwise(grey)
    return np.stack([cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 4, 21, 3, 7, 1.5, 0) for a, b in pairs])


def direction(flow_THWC: npt.NDArray[np.float32]) -> tuple[str, float] | None:
    """The one way everything moves in this crop, and how fast (pixels a frame); None if unclear; "still" if nothing."""
    speed = np.hypot(flow_THWC[..., 0], flow_THWC[..., 1])
    moving = speed > 1.0
    share = moving.mean((1, 2))
    if share.max() < 0.002:
        return "still", 0.0
    if share.min() < 0.04:
        return None
    means = np.stack([flow[mask].mean(0) for flow, mask in zip(flow_THWC, moving, strict=True)])
    total = means.mean(0)
    length = float(np.hypot(*total))
    coherent = length / float(speed[moving].mean())
    name, along = max(((n, float(np.dot(total, a))) for n, a in AXES.items()), key=lambda pair: pair[1])
    steady = min(float(np.dot(mean, AXES[name])) for mean in means) > 0.5
    return (name, length) if along / length > 0.85 and coherent > 0.75 and length > 1.5 and steady else None


def windows(name: str, split: str, frames: Frames) -> list[list[object]]:
    """Every clear window of a cut, on a coarse grid of times and crops."""
    flow = flows(frames)
    found: list[list[object]] = []
    for start in range(0, len(frames) - FRAMES + 1, 2):
        for size in (180, 132):
            for top in range(0, HEIGHT - size + 1, 24):
                for left in range(0, WIDTH - size + 1, 20):
                    crop = flow[start : start + FRAMES - 1, top : top + size, left : left + size]
                    answer = direction(crop)
                    if answer is not None:
                        found.append([name, split, answer[0], start, top, left, size])
    still = [window for window in found if window[2] == "still"]
    # Nothing moves most of the time: a few still windows of each cut are enough.
    return [window for window in found if window[2] != "still"] + still[:: max(1, len(still) // 40)]


def main(source: Path) -> None:
    """Cut, find, write."""
    OUT.mkdir(parents=True, exist_ok=True)
    entries: list[list[object]] = []
    cache: dict[str, Frames] = {}
    for video, split, start_s, end_s in CUTS:
        frames = cache.setdefault(video, sampled(source / f"{video}.mp4"))[round(start_s * FPS) : round(end_s * FPS)]
        name = f"{split}-{video.split('-')[0]}-{round(start_s):03d}.mp4"
        encode(OUT / name, frames)
        entries += windows(name, split, sampled(OUT / name))
        print(name, len(frames), sum(entry[0] == name for entry in entries))
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    columns = json.dumps(["video", "split", "moves", "start", "top", "left", "size"])
    text = f'{{"fps": {FPS}, "frames": {FRAMES}, "columns": {columns}, "windows": [\n{rows}\n]}}\n'
    write_text(OUT / "windows.json", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
