"""Copies that were encoded again look the same; other moments before the same camera do not."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_data_check import vidon
from tests.train.videos import Frame, encode
from toolkit.cli.footage import FOOTAGE
from toolkit.cv import opencv
from toolkit.video import extent, read_frames
from train.data import likeness
from train.data.check import check
from train.data.index import Dataset, index_clips
from train.data.likeness import DISTANCE, SIDE, Look, look_of, pairs

ORIGINAL = "train-one-042.mp4"
Change = Callable[[list[Frame], Path], Path]


def resized(frames: list[Frame], height: int, width: int) -> list[Frame]:
    method = opencv().INTER_AREA
    return [np.asarray(opencv().resize(frame, (width, height), interpolation=method), np.uint8) for frame in frames]


COPIES: dict[str, Change] = {
    "another_quality.mp4": lambda frames, path: encode(path, frames, options={"crf": "36"}),
    "another_size.mp4": lambda frames, path: encode(path, resized(frames, 96, 200)),
    "fewer_frames.mp4": lambda frames, path: encode(path, frames[::2], fps=5),
    "more_frames.mp4": lambda frames, path: encode(path, [f for f in frames for _ in range(3)], fps=30),
    "another_codec.avi": lambda frames, path: encode(path, frames, codec="mpeg4", options={"b": "200k"}),
    "another_container.webm": lambda frames, path: encode(path, frames, codec="libvpx", options={"b": "200k"}),
    "brighter.mkv": lambda frames, path: encode(path, [(f // 2 + 90).astype(np.uint8) for f in frames]),
    "all_at_once.mp4": lambda frames, path: encode(path, resized(frames[::2], 90, 160), fps=5, options={"crf": "32"}),
}


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [np.ascontiguousarray(frame[..., ::-1]) for _, frame in read_frames(FOOTAGE / ORIGINAL)]


def gathered(root: Path, names: Sequence[str]) -> Path:
    """Footage as training clips, a class a camera."""
    for name in names:
        target = root / "train" / name.split("-")[1] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOOTAGE / name, target)
    return root


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """Four moments before two cameras, all in one split."""
    return gathered(tmp_path / "data", (ORIGINAL, "train-one-005.mp4", "train-one-074.mp4", "test-car-024.mp4"))


def told(root: Path, *options: str) -> tuple[int, list[str], list[str]]:
    """Exit code, near duplicates and leaks."""
    code, out, err = vidon("data", "check", root, "--json", *options)
    assert "Traceback" not in err
    found = json.loads(out)
    return code, found["near_duplicates"], found["leaks"]


def test_moments_before_one_camera_are_no_copies(tmp_path: Path) -> None:
    names = sorted(path.name for path in FOOTAGE.glob("*.mp4"))
    assert told(gathered(tmp_path, names)) == (0, [], [])
    lines = ["path,label,start,end"]  # every second and a half of them
    for name in names:
        frames, rate = extent(FOOTAGE / name)
        lines += [
            f"{FOOTAGE / name},{name.split('-')[1]},{s},{s + 1.5}" for s in np.arange(0, frames / rate - 1.5, 1.5)
        ]
    (tmp_path / "moments.csv").write_text("\n".join(lines))
    report = check(index_clips(tmp_path / "moments.csv", splits="given"), 10, 2, 2)
    assert len(lines) > 55
    assert report.problems == ()


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_that_was_encoded_again_is_found(name: str, frames: list[Frame], footage: Path) -> None:
    COPIES[name](frames, footage / "train" / "one" / name)
    code, near, leaks = told(footage)
    assert (code, len(near), leaks) == (0, 1, [])  # a warning
    assert ORIGINAL in near[0]
    assert f"{name}: look the same (distance 0.0" in near[0].replace(ORIGINAL, name)


def test_a_copy_in_another_split_is_a_leak(frames: list[Frame], footage: Path) -> None:
    name = "another_quality.mp4"
    COPIES[name](frames, footage / "val" / "car" / name)
    code, near, leaks = told(footage)
    assert (code, near, len(leaks)) == (2, [], 1)
    assert leaks[0].endswith(", labels car and one in train and val")
    assert told(footage, "--distance", "0.001") == told(footage, "--distance", "0") == (0, [], [])


def test_mirror_images_are_found_if_asked(frames: list[Frame], footage: Path) -> None:
    encode(footage / "train" / "one" / "mirror.mp4", [frame[:, ::-1] for frame in frames], options={"crf": "30"})
    assert told(footage) == (0, [], [])
    code, near, _ = told(footage, "--mirrored")
    assert (code, len(near)) == (0, 1)
    assert "look the same mirrored (distance 0.0" in near[0]
    text = vidon("data", "check", footage, "--mirrored")[1]
    assert "near-duplicate     1  look at them" in text


def test_an_exact_copy_is_told_once(footage: Path) -> None:
    shutil.copy(footage / "train" / "one" / ORIGINAL, footage / "train" / "one" / "same.mp4")
    report = check(index_clips(footage), 10, 2, 1)
    assert [problem.kind for problem in report.problems] == ["duplicate"]


def test_frames_as_pictures_are_compared_with_videos(frames: list[Frame], footage: Path) -> None:
    video = index_clips(footage)
    folder = footage / "pictures"
    folder.mkdir()
    for index, frame in enumerate(frames):
        opencv().imwrite(str(folder / f"{index:03d}.jpg"), frame[..., ::-1])
    images = [{"id": i, "file_name": f"pictures/{i:03d}.jpg", "split": "train"} for i in range(len(frames))]
    raw = {"categories": [{"id": 1, "name": "one"}], "images": images, "annotations": []}
    (footage / "list.json").write_text(json.dumps(raw))
    both = Dataset(footage, video.labels, (*video.clips, *index_clips(footage / "list.json").clips))
    report = check(both, 10, 2, 1)
    assert [problem.kind for problem in report.problems] == ["near-duplicate"]
    (folder / "003.jpg").write_bytes(b"no picture")
    assert "003.jpg cannot be read" in check(both, 10, 2, 1).of("broken")[0].text


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), two.ravel())[0, 1])


def test_distances_are_those_of_whole_pictures(frames: list[Frame]) -> None:
    """Against correlations without sketches, of clips ever less alike; and blocks do not matter."""
    rng = np.random.default_rng(1)
    grey = np.stack([frame[..., 1] for frame in resized(frames[:80], SIDE, SIDE)])
    other = np.roll(grey, 5, 2)[::-1]
    clips = [
        np.rint((1 - w) * grey + w * other + rng.normal(0, 1, grey.shape)).clip(0, 255) for w in (0, 0.05, 0.1, 0.15)
    ]
    looks = [look_of(clip.astype(np.uint8), np.arange(80) / 10) for clip in clips]
    found = {(pair.first, pair.second): pair.distance for pair in pairs(looks, 0.4)}
    assert len(found) >= 3
    for (first, second), distance in found.items():
        parts = [clips[place].reshape(8, 10, SIDE, SIDE).mean(1) for place in (first, second)]
        moves = [np.diff(part, axis=0) - np.diff(part, axis=0).mean((1, 2), keepdims=True) for part in parts]
        stays = [part.mean(0).reshape(16, 2, 16, 2).mean((1, 3)) for part in parts]
        assert distance == pytest.approx(max(1 - correlation(*moves), 10 * (1 - correlation(*stays))), abs=0.03)


def test_pairs_do_not_depend_on_blocks_and_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def drawn(seed: int) -> Look:
        own = np.random.default_rng(seed)
        still = own.normal(size=256)
        motion = own.integers(-60, 60, 1024) + rng.integers(-6, 7, 1024)
        return Look((still / np.linalg.norm(still)).astype(np.float16), motion.astype(np.int8), motion.astype(np.int8))

    looks = [None if place % 7 == 0 else drawn(place % 40) for place in range(100)]
    whole = pairs(looks)
    want = {(i, j) for j in range(100) for i in range(j) if i % 7 and j % 7 and i % 40 == j % 40}
    assert {(pair.first, pair.second) for pair in whole} == want
    monkeypatch.setattr(likeness, "_BLOCK", 9)
    assert pairs(looks) == whole
    assert all(pair.distance < DISTANCE for pair in whole)


@pytest.mark.parametrize("kind", ["black", "still", "noise", "one frame", "flicker"])
def test_where_nothing_moves_there_is_no_look(kind: str) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (SIDE, SIDE))
    clips = {
        "black": np.zeros((20, SIDE, SIDE)),
        "still": np.stack([scene] * 20),
        "noise": np.stack([scene] * 20) + rng.normal(0, 0.4, (20, SIDE, SIDE)),
        "one frame": scene[None],
        "flicker": np.stack([scene * 0.5 + 8 * (i % 4) for i in range(20)]),
    }
    clip = clips[kind].clip(0, 255).astype(np.uint8)
    assert look_of(clip, np.arange(len(clip)) / 10) is None
