"""The demo's data: *what moves how*, cut from the real footage in ``toolkit/assets/footage``.

A window is a square crop of 8 frames in which everything moves one way. Turning it by quarter turns and
playing it backwards gives every direction from the same pixels; pausing it gives ``still``. So each single
frame stands under opposite labels equally often, and only time tells them apart. Train, val and test windows
come from disjoint times of the videos.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.files import fresh_dir, write_json
from toolkit.progress import track
from toolkit.video import read_frames

__all__ = ["FLIPS", "FOOTAGE", "LABELS", "build_camera", "build_clips"]

FOOTAGE = Path(__file__).resolve().parents[1] / "assets" / "footage"
LABELS = ("away", "left", "right", "still", "towards")
#: What each label becomes in a mirror.
FLIPS = {"left": "right", "right": "left"}
_QUARTER = {"right": "away", "away": "left", "left": "towards", "towards": "right", "still": "still"}
_REVERSED = {"right": "left", "left": "right", "away": "towards", "towards": "away", "still": "still"}
_BASES = {"train": 80, "val": 24, "test": 40}
_SIDE = 96

Clip = npt.NDArray[np.uint8]  # (T, H, W, 3) BGR


@dataclass(frozen=True, slots=True)
class Window:
    """A square crop of a few frames; everything in it ``moves`` one way (or nothing moves: "still")."""

    video: str
    split: str
    moves: str
    start: int
    top: int
    left: int
    size: int


def turned(clip_THWC: Clip, label: str, quarters: int, backwards: bool) -> tuple[Clip, str]:
    """Turn counter-clockwise by quarter turns, play backwards or not; the label follows."""
    for _ in range(quarters):
        label = _QUARTER[label]
    clip = np.rot90(clip_THWC, quarters, axes=(1, 2))
    return (clip[::-1], _REVERSED[label]) if backwards else (clip, label)


def paused(clip_THWC: Clip, rng: np.random.Generator) -> Clip:
    """Hold the middle frame, with fresh sensor noise on every frame."""
    held = clip_THWC[len(clip_THWC) // 2].astype(np.float32)
    noisy = held + rng.normal(0, 1.5, clip_THWC.shape)
    return np.asarray(np.clip(np.round(noisy), 0, 255), np.uint8)


def build_clips(out: Path, seed: int = 0, footage: Path = FOOTAGE) -> dict[str, int]:
    """Write ``out/<split>/<label>/*.avi`` (8 frames, 96x96, 10 frames/s) and return the number of clips per split.

    The folder appears whole or not at all.
    """
    frames, windows, count = _load(footage)
    counts: dict[str, int] = {}
    with fresh_dir(out) as staging:
        for split, bases in _BASES.items():
            rng = np.random.default_rng([seed, bases])
            clips = _split(frames, [w for w in windows if w.split == split], bases, count, rng)
            for index, (clip, label) in enumerate(track(clips, f"{split} clips")):
                folder = staging / split / label
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / f"{split}-{index:04d}.avi", clip)
            counts[split] = len(clips)
    return counts


def build_camera(out: Path, footage: Path = FOOTAGE) -> list[dict[str, object]]:
    """Write a held-out video (test times only) to be played as a camera, and ``out`` + ``.json`` with what moves when.

    Returns the truth: dicts with ``start_s``, ``end_s``, ``label``.
    """
    frames, windows, _ = _load(footage)
    truth: list[dict[str, object]] = []
    played: list[Clip] = []
    total = 0
    plan = (("test-one-132.mp4", 0, False), ("test-car-024.mp4", 0, False), ("test-one-132.mp4", 0, True),
            ("test-car-024.mp4", 1, False), ("test-one-132.mp4", 3, False), ("test-car-024.mp4", 0, True))  # fmt: skip
    for video, quarters, backwards in plan:
        left = _best_left(windows, video)
        clip = frames[video][:, :180, left : left + 180]
        shown, _ = turned(clip, "still", quarters, backwards)
        played.append(shown)
        for window in windows:
            if window.video == video and window.size == 180 and window.left == left and window.moves != "still":
                _, label = turned(clip[:1], window.moves, quarters, backwards)
                first = len(clip) - window.start - 8 if backwards else window.start
                truth.append({"start_s": (total + first) / 10, "end_s": (total + first + 8) / 10, "label": label})
        total += len(clip)
    _write(out, np.concatenate(played), codec="mp4v", side=320)
    write_json(out.with_suffix(".json"), truth)
    return truth


def _best_left(windows: list[Window], video: str) -> int:
    """The crop in which most is known to move."""
    found: dict[int, int] = defaultdict(int)
    for window in windows:
        if window.video == video and window.size == 180 and window.moves != "still":
            found[window.left] += 1
    return max(found, key=lambda left: (found[left], -left))


def _load(footage: Path) -> tuple[dict[str, Clip], list[Window], int]:
    raw = json.loads((footage / "windows.json").read_bytes())
    windows = [Window(*row) for row in raw["windows"]]
    names = sorted({window.video for window in windows})
    return {name: np.stack([f for _, f in read_frames(footage / name)]) for name in names}, windows, raw["frames"]


def _split(
    frames: dict[str, Clip], windows: list[Window], bases: int, count: int, rng: np.random.Generator
) -> list[tuple[Clip, str]]:
    """Every base window in all eight ways, once paused, and as many really still windows."""

    def cut(window: Window) -> Clip:
        rows, cols = slice(window.top, window.top + window.size), slice(window.left, window.left + window.size)
        return frames[window.video][window.start : window.start + count, rows, cols]

    clips: list[tuple[Clip, str]] = []
    for window in _spread([w for w in windows if w.moves != "still"], bases, rng):
        clip = cut(window)
        clips += [turned(clip, window.moves, quarters, back) for quarters in range(4) for back in (False, True)]
        clips.append((turned(paused(clip, rng), "still", int(rng.integers(4)), False)[0], "still"))
    for window in _spread([w for w in windows if w.moves == "still"], bases, rng):
        clips.append(turned(cut(window), "still", int(rng.integers(4)), bool(rng.integers(2))))
    return clips


def _spread(windows: list[Window], count: int, rng: np.random.Generator) -> list[Window]:
    """``count`` windows, shared evenly among the (video, direction) groups."""
    groups: dict[tuple[str, str], list[Window]] = defaultdict(list)
    for window in windows:
        groups[window.video, window.moves].append(window)
    for group in groups.values():
        rng.shuffle(group)
    chosen: list[Window] = []
    while len(chosen) < min(count, len(windows)):
        chosen += [group.pop() for group in groups.values() if group]
    return chosen[:count]


def _write(path: Path, clip_THWC: Clip, codec: str = "MJPG", side: int = _SIDE) -> None:
    cv2 = opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10.0, (side, side))
    for frame in clip_THWC:
        writer.write(cv2.resize(np.ascontiguousarray(frame), (side, side), interpolation=cv2.INTER_AREA))
    writer.release()
