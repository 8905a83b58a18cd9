"""Writers of malformed data for ``benchmarks/malformed.py``: each fills a folder and returns the data's root."""

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.train.videos import encode, moving_frames

#: Frames of a sound clip.
FRAMES = 8
_POOL: dict[int, bytes] = {}


def video(path: Path, seed: int) -> Path:
    """One of many small videos; encoded once each."""
    if seed not in _POOL:
        with tempfile.TemporaryDirectory() as folder:
            _POOL[seed] = encode(Path(folder) / "v.mp4", moving_frames(FRAMES, seed=seed)).read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_POOL[seed])
    return path


def good(root: Path) -> Path:
    """Split folders with two classes, all sound."""
    seeds = iter(range(100))
    for split, count in (("train", 4), ("val", 1)):
        for label in ("a", "b"):
            for index in range(count):
                video(root / split / label / f"{split}_{label}{index}.mp4", next(seeds))
    return root


def beside(write: Callable[[Path], object], name: str = "train/a/odd.mp4") -> Callable[[Path], Path]:
    """Good data with one odd file."""

    def make(folder: Path) -> Path:
        root = good(folder / "data")
        write(root / name)
        return root

    return make


def changed(change: Callable[[bytes], bytes], suffix: str = ".mp4") -> Callable[[Path], Path]:
    """Good data with one video whose bytes were changed."""

    def write(path: Path) -> None:
        whole = encode(path.with_suffix(suffix), moving_frames(40, seed=99), options={"crf": "10"})
        whole.write_bytes(change(whole.read_bytes()))

    return beside(write)


def table(text: str | bytes, *videos: str) -> Callable[[Path], Path]:
    """A CSV, with these videos beside it."""

    def make(folder: Path) -> Path:
        for seed, name in enumerate(videos):
            video(folder / name, seed)
        (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / "list.csv"

    return make


def files(**texts: str) -> Callable[[Path], Path]:
    """A folder with these files; ``__`` in a name is a folder."""

    def make(folder: Path) -> Path:
        for name, text in texts.items():
            path = folder / "data" / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder / "data"

    return make


def coco(**changes: object) -> Callable[[Path], Path]:
    """A COCO list with something wrong in it."""
    raw = {
        "categories": [{"id": 1, "name": "car"}], "videos": [{"id": 1, "file_name": "v.mp4", "split": "train"}],
        "images": [{"id": 1, "video_id": 1, "frame_index": 0}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}], **changes,
    }  # fmt: skip

    def make(folder: Path) -> Path:
        video(folder / "v.mp4", 0)
        (folder / "boxes.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
        return folder / "boxes.json"

    return make


def no_picture(folder: Path) -> Path:
    """Frames as picture files, one of which is text."""
    for name in ("0.jpg", "1.jpg"):
        png(folder / name)
    (folder / "1.jpg").write_text("a letter")
    images = [{"id": index, "file_name": f"{index}.jpg", "split": "train"} for index in range(2)]
    boxes = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    raw = {"categories": [{"id": 1, "name": "car"}], "images": images, "annotations": boxes}
    (folder / "boxes.json").write_text(json.dumps(raw))
    return folder / "boxes.json"


def shards(change: Callable[[Path], object], described: bool = True) -> Callable[[Path], Path]:
    """A tar of two clips, changed afterwards."""

    def make(folder: Path) -> Path:
        with tarfile.open(folder / "train.tar", "w") as tar:
            for index in range(2):
                parts = {"mp4": video(folder / "v.mp4", index).read_bytes()}
                parts |= {"json": json.dumps({"label": "ab"[index]}).encode()} if described else {}
                for ending, data in parts.items():
                    info = tarfile.TarInfo(f"{index}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        change(folder / "train.tar")
        return folder / "train.tar"

    return make


def copied(source: str, target: str) -> Callable[[Path], Path]:
    """Good data with one file copied elsewhere."""

    def make(folder: Path) -> Path:
        root = good(folder / "data")
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)
        return root

    return make


def one_class(folder: Path) -> Path:
    """Only one class folder."""
    video(folder / "data" / "a" / "x.mp4", 0)
    return folder / "data"


def nested(folder: Path) -> Path:
    """The classes lie one level deeper."""
    for index, label in enumerate("ab"):
        video(folder / "data" / "clips" / label / f"{label}.mp4", index)
    return folder / "data"


def ambiguous(folder: Path) -> Path:
    """Class folders and a tar."""
    root = nested(folder) / "clips"
    (root / "more.tar").write_bytes(b"")
    return root


def loop(folder: Path) -> Path:
    """A folder that is in itself, and a file that is itself."""
    root = good(folder / "data")
    (root / "train" / "a" / "self").symlink_to(root / "train")
    (root / "train" / "a" / "me.mp4").symlink_to(root / "train" / "a" / "me.mp4")
    return root


def mostly_broken(folder: Path) -> Path:
    """Half of the training videos are rubbish."""
    root = good(folder / "data")
    for path in sorted((root / "train" / "a").iterdir()):
        path.write_bytes(b"rubbish")
    return root


def one_broken(folder: Path) -> Path:
    """One of eight training videos is rubbish."""
    root = good(folder / "data")
    (root / "train" / "a" / "train_a0.mp4").write_bytes(b"rubbish")
    return root


def no_train(folder: Path) -> Path:
    """Only a validation split."""
    root = good(folder / "data")
    shutil.rmtree(root / "train")
    return root


def short_clips(folder: Path) -> Path:
    """Every video is shorter than a clip."""
    root = good(folder / "data")
    for seed, path in enumerate(sorted(root.rglob("*.mp4"))):
        encode(path, moving_frames(2, seed=seed))
    return root


def unseen(folder: Path) -> Path:
    """A class that the model does not know."""
    root = good(folder / "data")
    video(root / "val" / "c" / "c.mp4", 50)
    return root


def other_name(name: bytes) -> Callable[[Path], Path]:
    """Good data with a file of an odd name."""

    def make(folder: Path) -> Path:
        root = good(folder / "data")
        shutil.copy(root / "train/a/train_a0.mp4", os.fsencode(root / "train" / "a") + b"/" + name)
        return root

    return make


def forbidden(folder: Path) -> Path:
    """A file that may not be read."""
    root = good(folder / "data")
    (root / "train" / "a" / "train_a0.mp4").chmod(0)
    for path in (folder, root, *root.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    return root


def png(path: Path) -> None:
    """A still picture."""
    import cv2

    ok, data = cv2.imencode(".png", moving_frames(1)[0])
    assert ok
    path.write_bytes(data.tobytes())


def uneven(path: Path) -> None:
    """Frames at uneven times."""
    encode(path, moving_frames(12, seed=80), times_s=[i / 10 + 0.04 * float(np.sin(7 * i)) for i in range(12)])
