"""Boxed footage made in the test: a bright and a dark square that move over a grey ground."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from toolkit.detection import DetectionSpec
from toolkit.recipe import Recipe

ROWS, COLS, LABELS = 48, 80, ("bright", "dark")


def write_boxes(folder: Path, splits: tuple[str, ...] = ("train", "val"), frames: int = 16) -> Path:
    """``boxes.json`` and one video a split; frames and boxes are exact, apart from the video's compression."""
    folder.mkdir(parents=True, exist_ok=True)
    videos: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, split in enumerate(splits, start=1):
        name = f"{split}.avi"
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (COLS, ROWS))
        videos.append({"id": number, "file_name": name, "split": split, "width": COLS, "height": ROWS})
        for index in range(frames):
            picture = np.full((ROWS, COLS, 3), 120, np.uint8)
            image = len(images) + 1
            images.append({"id": image, "video_id": number, "frame_index": index})
            for label, (left, top, level) in enumerate(((4 + 3 * index, 6, 250), (56 - 3 * index, 26, 10)), start=1):
                picture[top : top + 16, left : left + 20] = level
                annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": label,
                                    "bbox": [left, top, 20, 16], "iscrowd": 0})  # fmt: skip
            writer.write(picture)
        writer.release()
    categories = [{"id": index, "name": name} for index, name in enumerate(LABELS, start=1)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({
        "videos": videos, "images": images, "annotations": annotations, "categories": categories,
    }))  # fmt: skip
    return path


def boxes_recipe(root: Path, **detection: Any) -> Recipe:
    """A detector that trains in seconds."""
    return Recipe.model_validate({
        "task": "detection",
        "data": {"root": root, "frames": 4},
        "preprocess": {"size": (ROWS, COLS), "fps": 10.0},
        "student": {"width": 0.25, "blocks": 5, "look_back": True, "boxes": {"channels": 32}},
        "teacher": {"dim": 32, "depth": 2, "heads": 2, "tubelet": (2, 8, 8)},
        "detection": {"epochs": 1, "batch": 4, "lr": 4e-3, **detection},
        "quantize": {"rollouts": 2},
    })  # fmt: skip


def answer_for(boxes: list[list[float]], labels: list[int], classes: int, spec: DetectionSpec) -> np.ndarray:
    """The answer (N,) of a perfect detector: each box at the location of level 0 nearest to its centre."""
    level = spec.levels[0]
    table = np.full((classes + 5, level.rows, level.cols), -8.0, np.float32)
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        row = int((top + bottom) / 2 // level.stride)
        col = int((left + right) / 2 // level.stride)
        x, y = (col + 0.5) * level.stride, (row + 0.5) * level.stride
        table[label, row, col] = table[-1, row, col] = 8.0
        table[-5:-1, row, col] = np.asarray([x - left, y - top, right - x, bottom - y]) / level.stride
    rest = (spec.locations - level.rows * level.cols) * (classes + 5)
    return np.concatenate([table.ravel(), np.full(rest, -8.0, np.float32)])
