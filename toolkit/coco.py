"""Read boxes from a COCO-style JSON file, of still pictures or of videos, and say what is wrong with it in one line.

Besides COCO's ``images``, ``annotations`` and ``categories`` a file may have ``videos`` (id, file_name, optionally
split and group); an image then has ``video_id`` and ``frame_index``, its place in the video from 0. Names are relative
to the JSON file. Several splits may share one file: ``split`` stands at the video, or at the image of a still.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.errors import UserError, nearest

__all__ = ["BoxData", "Footage", "FrameBoxes", "read_coco"]

_SPLITS = ("train", "val", "test")
_SLACK = 1.0  # pixels a box may stick out: annotation tools round


@dataclass(frozen=True, slots=True)
class FrameBoxes:
    """boxes: float32 (M, 4) as left, top, right, bottom in pixels; labels: int64 (M,)."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Footage:
    """One video, or one still picture, with the boxes of its annotated frames by frame number."""

    path: Path
    split: str
    size: tuple[int, int] | None  # height, width, as the file says
    frames: dict[int, FrameBoxes]
    still: bool = False


@dataclass(frozen=True, slots=True)
class BoxData:
    """Labels in the order of the category ids, and all footage."""

    path: Path
    labels: tuple[str, ...]
    footage: tuple[Footage, ...]

    def split(self, name: str) -> tuple[Footage, ...]:
        """The footage of one split; "all" takes everything, "auto" the test split if there is one, else everything.

        Raises:
            UserError: unknown split, or one without footage.
        """
        if name not in (*_SPLITS, "all", "auto"):
            raise UserError(f"unknown split {name!r}{nearest(name, _SPLITS)}; splits: {', '.join(_SPLITS)}, all")
        if name == "auto":
            name = "test" if any(part.split == "test" for part in self.footage) else "all"
        found = tuple(part for part in self.footage if name == "all" or part.split == name)
        if not found:
            raise UserError(f'boxes {self.path}: nothing is in split {name!r}; give videos "split": "{name}"')
        return found


def read_coco(path: Path, labels: tuple[str, ...] | None = None) -> BoxData:
    """Read and check the file; ``labels`` fixes names and order, for evaluating a trained model.

    Raises:
        UserError: not COCO, no categories, no annotations, a box outside its picture, a dangling id, an unknown label.
    """
    raw = _load(path)
    names = {_of(row, "id", path, "category"): str(_of(row, "name", path, "category")) for row in raw["categories"]}
    order = labels or tuple(names[key] for key in sorted(names))
    for name in names.values():
        if name not in order:
            raise UserError(f"boxes {path}: category {name!r} was not in training{nearest(name, order)}; "
                            f"the model knows: {', '.join(order)}")  # fmt: skip
    images = {_of(image, "id", path, "image"): image for image in raw["images"]}
    rows: dict[Any, list[tuple[list[float], int]]] = {key: [] for key in images}
    for entry in raw["annotations"]:
        image = images.get(_of(entry, "image_id", path, "annotation"))
        category = names.get(_of(entry, "category_id", path, "annotation"))
        if image is None or category is None:
            what = "image_id" if image is None else "category_id"
            raise UserError(f"boxes {path}: annotation {entry.get('id')} has an unknown {what} {entry[what]}")
        if not entry.get("iscrowd"):
            rows[image["id"]].append((_box(entry, image, path), order.index(category)))
    return BoxData(path, order, _footage(raw, images, rows, path))


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"boxes {path} do not exist: give the COCO JSON file (data.root in the recipe, or --data)")
    try:
        raw = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"boxes {path} are not readable JSON: {error}") from error
    for table in ("images", "annotations", "categories"):
        if not isinstance(raw, dict) or not isinstance(raw.get(table), list):
            raise UserError(f"boxes {path} have no list {table!r}: a COCO file has images, annotations and categories")
        if not raw[table]:
            raise UserError(f"boxes {path}: {table!r} is empty; there is nothing to learn or to measure")
    tables: dict[str, Any] = raw
    return tables


def _of(entry: Any, key: str, path: Path, what: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"boxes {path}: {what} {str(entry)[:60]} has no {key!r}")
    return entry[key]


def _box(entry: dict[str, Any], image: dict[str, Any], path: Path) -> list[float]:
    """Left, top, right, bottom; COCO's bbox is left, top, width, height."""
    where = f"boxes {path}: annotation {entry.get('id')}"
    try:
        left, top, width, height = (float(side) for side in entry["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} has no bbox of four numbers: {entry.get('bbox')}") from error
    if not (width > 0 and height > 0 and np.isfinite([left, top, width, height]).all()):
        raise UserError(f"{where} has an empty bbox {entry['bbox']}: width and height must be above 0")
    size = _size(image, path)
    if size is not None and (
        min(left, top) < -_SLACK or left + width > size[1] + _SLACK or top + height > size[0] + _SLACK
    ):
        raise UserError(f"{where}: bbox {entry['bbox']} lies outside its picture ({size[1]}x{size[0]} pixels)")
    return [left, top, left + width, top + height]


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        return None
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise UserError(f"boxes {path}: {entry.get('file_name', entry.get('id'))} has a bad size {width}x{height}")
    return height, width


def _footage(
    raw: dict[str, Any], images: dict[Any, dict[str, Any]], rows: dict[Any, list[tuple[list[float], int]]], path: Path
) -> tuple[Footage, ...]:
    videos = {_of(video, "id", path, "video"): video for video in raw.get("videos", [])}
    frames: dict[Any, dict[int, FrameBoxes]] = {key: {} for key in videos}
    stills: list[Footage] = []
    for key, image in images.items():
        boxes = _stacked(rows[key])
        if image.get("video_id") is None:
            name = path.parent / str(_of(image, "file_name", path, "image"))
            stills.append(Footage(name, _split(image, path), _size(image, path), {0: boxes}, still=True))
        elif image["video_id"] not in videos:
            raise UserError(f"boxes {path}: image {key} has an unknown video_id {image['video_id']}")
        else:
            frames[image["video_id"]][int(_of(image, "frame_index", path, "image"))] = boxes
    clips = [
        Footage(path.parent / str(_of(row, "file_name", path, "video")), _split(row, path), _size(row, path), known)
        for key, row in videos.items()
        if (known := frames[key])
    ]  # fmt: skip
    return (*clips, *stills)


def _split(entry: dict[str, Any], path: Path) -> str:
    split = entry.get("split", "")
    if split not in (*_SPLITS, ""):
        raise UserError(f"boxes {path}: unknown split {split!r}{nearest(split, _SPLITS)}; use {', '.join(_SPLITS)}")
    return str(split)


def _stacked(rows: Sequence[tuple[list[float], int]]) -> FrameBoxes:
    boxes = np.asarray([box for box, _ in rows], np.float32).reshape(-1, 4)
    return FrameBoxes(boxes, np.asarray([label for _, label in rows], np.int64))
