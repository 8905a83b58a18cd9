"""The demo's clips: labels follow the pixels, and no single frame tells."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from toolkit.cli import footage
from toolkit.video import read_frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    footage.build_clips(out)
    return out


def test_classes_are_balanced_in_every_split(data: Path) -> None:
    for split in ("train", "val", "test"):
        counts = Counter(path.parent.name for path in (data / split).rglob("*.avi"))
        assert set(counts) == set(footage.LABELS)
        assert len(set(counts.values())) == 1


def test_splits_come_from_disjoint_videos() -> None:
    _, windows, _ = footage._load(footage.FOOTAGE)
    splits: dict[str, set[str]] = {}
    for window in windows:
        splits.setdefault(window.video, set()).add(window.split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize(
    ("quarters", "backwards", "label"),
    [
        (0, False, "right"),
        (1, False, "away"),
        (2, False, "left"),
        (3, False, "towards"),
        (0, True, "left"),
        (1, True, "towards"),
    ],
)
def test_turning_and_reversing_move_the_label_with_the_pixels(quarters: int, backwards: bool, label: str) -> None:
    clip = np.zeros((4, 9, 9, 3), np.uint8)
    for t in range(4):
        clip[t, 4, 2 * t] = 255  # moves right
    turned, got = footage.turned(clip, "right", quarters, backwards)
    assert got == label
    places = [np.argwhere(frame[..., 0])[0] for frame in turned]
    down, right = places[-1] - places[0]
    want = {"right": (0, 6), "left": (0, -6), "towards": (6, 0), "away": (-6, 0)}[label]
    assert (down, right) == want


def test_every_frame_stands_under_opposite_labels(data: Path) -> None:
    """Forwards and backwards clips of a window hold the very same pictures."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (8, 5, 5, 3), dtype=np.uint8)
    forward, one = footage.turned(clip, "right", 0, False)
    backward, other = footage.turned(clip, "right", 0, True)
    assert {one, other} == {"left", "right"}
    assert {frame.tobytes() for frame in forward} == {frame.tobytes() for frame in backward}


def test_flow_agrees_with_the_labels(data: Path) -> None:
    import cv2

    axis = {"left": (0, -1), "right": (0, 1), "away": (1, -1), "towards": (1, 1)}
    right = total = 0
    for label, (channel, sign) in axis.items():
        for path in sorted((data / "test" / label).iterdir())[::8]:
            grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for _, frame in read_frames(path)]
            flow = cv2.calcOpticalFlowFarneback(
                grey[2], grey[3], np.zeros((96, 96, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0
            )
            speed = np.hypot(flow[..., 0], flow[..., 1])
            right += int(sign * flow[..., channel][speed > 0.5].mean() > 0)
            total += 1
    assert right >= 0.9 * total, (right, total)


def test_the_camera_video_comes_with_its_truth(tmp_path: Path) -> None:
    truth = footage.build_camera(tmp_path / "camera.mp4")
    seconds = sum(1 for _ in read_frames(tmp_path / "camera.mp4")) / 10
    assert len({row["label"] for row in truth}) >= 4
    assert all(0 <= row["start_s"] < row["end_s"] <= seconds for row in truth)  # type: ignore[operator]
