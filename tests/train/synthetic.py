"""Tiny labelled videos made in the test: a bright bar that moves right or left over noise."""

from pathlib import Path

import cv2
import numpy as np

from toolkit.recipe import Recipe

SIDE = 32


def write_video(path: Path, step: int, seed: int, frames: int = 8) -> Path:
    """A bar that moves by ``step`` pixels a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    back = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    start = int(rng.integers(0, SIDE))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (SIDE, SIDE))
    for index in range(frames):
        frame = back.copy()
        columns = (np.arange(6) + start + step * index) % SIDE
        frame[:, columns] = 230
        writer.write(frame)
    writer.release()
    return path


def write_data(root: Path, train: int = 12, val: int = 4) -> Path:
    """``root/<split>/<left|right>/*.avi``."""
    for split, count in (("train", train), ("val", val), ("test", val)):
        for label, step in (("left", -3), ("right", 3)):
            for index in range(count):
                write_video(root / split / label / f"{split}-{label}-{index}.avi", step, seed=hash_of(split, index))
    return root


def hash_of(split: str, index: int) -> int:
    """The same background for both directions, another for every clip and split."""
    return {"train": 0, "val": 1000, "test": 2000}[split] + index


def tiny_recipe(root: Path, **sections: dict[str, object]) -> Recipe:
    """A recipe that trains in seconds."""
    raw: dict[str, object] = {
        "data": {"root": root, "frames": 4, "flips": {"left": "right", "right": "left"}},
        "preprocess": {"size": (SIDE, SIDE), "fps": 10.0},
        "teacher": {"dim": 32, "depth": 2, "heads": 2, "tubelet": (2, 8, 8)},
        "pretrain": {"epochs": 2, "batch": 8, "settings": {"masked": {"decoder_dim": 32, "decoder_depth": 1}}},
        "finetune": {"epochs": 2, "batch": 8},
        "student": {"width": 0.25, "depth": 0.4, "look_back": True},
        "distill": {"epochs": 2, "batch": 8},
        "prune": {"epochs": 1, "ratio": 0.4, "round_to": 8},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}  # type: ignore[dict-item]
    return Recipe.model_validate(raw)
