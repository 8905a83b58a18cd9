"""Read boxes from a COCO-style JSON file, of still pictures or of videos, and say what is wrong with it in one line.

Besides COCO's ``images``, ``annotations`` and ``categories`` a file may have ``videos`` (id, file_name, optionally
split and group); an image then has ``video_id`` and ``frame_index``, its place in the video from 0. Names are relative
to the JSON file. Several splits may share one file: ``split`` stands at the video, or at the image of a still.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.errors import UserError, nearest
from toolkit.splits import SPLITS, check_split

__all__ = ["PARTS", "BoxData", "Footage", "FrameBoxes", "Tables", "coco_tables", "corners", "frame_number", "read_coco",
           "unknown_video", "value_of"]  # fmt: skip

PARTS = ("images", "annotations", "categories")
_Corners = tuple[float, float, float, float]
_Row = tuple[_Corners, int, bool]  # corners, label, whether it is a crowd
_SLACK = 1.0  # pixels a box may stick out: annotation tools round


@dataclass(frozen=True, slots=True)
class FrameBoxes:
    """boxes: float32 (M, 4) as left, top, right, bottom in pixels; labels: int64 (M,).

    ``crowd``: regions of many objects (``iscrowd``). They teach nothing, and what is found in them is not wrong.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: "FrameBoxes | None" = None


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
        check_split(name, "auto")
        if name == "auto":
            name = "test" if any(part.split == "test" for part in self.footage) else "all"
        found = tuple(part for part in self.footage if name == "all" or part.split == name)
        if not found:
            raise UserError(f'boxes {self.path}: nothing is in split {name!r}; give videos "split": "{name}"')
        return found


@dataclass(frozen=True, slots=True)
class Tables:
    """A COCO file by its ids: ``names`` of the categories, ``videos``, ``images``, and each image's ``annotations``.

    An annotation is (name of its category, its own entry); every id that one table uses is in the other.
    """

    names: dict[Any, str]
    videos: dict[Any, dict[str, Any]]
    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[tuple[str, dict[str, Any]]]]


def coco_tables(raw: Any, where: str) -> Tables:
    """Check what a JSON file holds; ``where`` says which file it is, in every message.

    Raises:
        UserError: not COCO, an entry without its id, or a dangling id.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} is not COCO: it is no JSON object")
    for part in PARTS:
        if not isinstance(raw.get(part), list):
            raise UserError(f"{where} have no list {part!r}: a COCO file has images, annotations and categories, "
                            f"the list {part!r} is missing")  # fmt: skip
    names = {key: str(value_of(row, "name", where, "categories")) for key, row in _keyed(raw, "categories", where)}
    images, videos = dict(_keyed(raw, "images", where)), dict(_keyed(raw, "videos", where))
    annotations: dict[Any, list[tuple[str, dict[str, Any]]]] = {key: [] for key in images}
    for row in raw["annotations"]:
        image, category = (value_of(row, key, where, "annotations") for key in ("image_id", "category_id"))
        for kind, key, known in (("image", image, images), ("category", category, names)):
            if key not in known:
                raise UserError(f"{where}: annotation {row.get('id')} has an unknown {kind}_id {key!r}: "
                                f"it is of {kind} {key!r}, which is not there")  # fmt: skip
        annotations[image].append((names[category], row))
    return Tables(names, videos, images, annotations)


def _keyed(raw: dict[str, Any], part: str, where: str) -> list[tuple[Any, dict[str, Any]]]:
    rows = raw.get(part) or []
    if not isinstance(rows, list):
        raise UserError(f"{where} is not COCO: {part!r} is no list")
    keyed = [(value_of(row, "id", where, part), row) for row in rows]
    if len(keyed) > len(dict(keyed)):
        twice = next(key for key, count in Counter(key for key, _ in keyed).items() if count > 1)
        raise UserError(f"{where}: two entries of {part!r} have the id {twice!r}: ids must differ")
    return keyed


def value_of(row: Any, key: str, where: str, part: str) -> Any:
    """A value that an entry of the table ``part`` must have: text or a number.

    Raises:
        UserError: it has none.
    """
    if not isinstance(row, dict) or not isinstance(row.get(key), str | int | float):
        raise UserError(f"{where} is not COCO: an entry of {part!r} has no {key!r}: {str(row)[:60]}")
    return row[key]


def unknown_video(where: str, image: Any, video: Any) -> UserError:
    """An image of a video that is not there."""
    return UserError(f"{where}: image {image!r} has an unknown video_id {video!r}: "
                     f"it is of video {video!r}, which is not in 'videos'")  # fmt: skip


def frame_number(image: dict[str, Any]) -> int | None:
    """An image's place in its video, from 0, if the file says it."""
    value = image.get("frame_index", image.get("frame_id"))
    return int(value) if isinstance(value, int | float) and value >= 0 and value % 1 == 0 else None


def corners(entry: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels; COCO's bbox is left, top, width, height.

    Raises:
        UserError: not four numbers, or an empty box.
    """
    box, mark = entry.get("bbox"), f"{where}: annotation {entry.get('id')}"
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise UserError(f"{mark} has no bbox of four numbers: {box!r}")
    left, top, width, height = (float(side) for side in box)
    if not (width > 0 and height > 0 and np.isfinite([left, top, width, height]).all()):
        raise UserError(f"{mark} has an empty bbox {box}: expected [x, y, width, height], "
                        "width and height must be above 0")  # fmt: skip
    return left, top, left + width, top + height


def read_coco(path: Path, labels: tuple[str, ...] | None = None) -> BoxData:
    """Read and check the file; ``labels`` fixes names and order, for evaluating a trained model.

    Raises:
        UserError: not COCO, no categories, no annotations, a box outside its picture, a dangling id, an unknown label.
    """
    tables = coco_tables(_load(path), f"boxes {path}")
    order = labels or tuple(tables.names[key] for key in sorted(tables.names))
    for name in tables.names.values():
        if name not in order:
            raise UserError(f"boxes {path}: category {name!r} was not in training{nearest(name, order)}; "
                            f"the model knows: {', '.join(order)}")  # fmt: skip
    rows = {
        key: [(_inside(entry, _declared(tables, tables.images[key], path), path), order.index(name),
               bool(entry.get("iscrowd"))) for name, entry in entries]
        for key, entries in tables.annotations.items()
    }  # fmt: skip
    return BoxData(path, order, _footage(tables, rows, path))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"boxes {path} do not exist: give the COCO JSON file (data.root in the recipe, or --data)")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"boxes {path} are not readable JSON: {error}") from error
    for part in PARTS if isinstance(raw, dict) else ():
        if raw.get(part) == []:
            raise UserError(f"boxes {path}: {part!r} is empty; there is nothing to learn or to measure")
    return raw


def _inside(entry: dict[str, Any], size: tuple[int, int] | None, path: Path) -> _Corners:
    left, top, right, bottom = corners(entry, f"boxes {path}")
    if size is not None and (min(left, top) < -_SLACK or right > size[1] + _SLACK or bottom > size[0] + _SLACK):
        raise UserError(f"boxes {path}: annotation {entry.get('id')}: bbox {entry['bbox']} lies outside its picture "
                        f"({size[1]}x{size[0]} pixels)")  # fmt: skip
    return left, top, right, bottom


def _declared(tables: Tables, image: dict[str, Any], path: Path) -> tuple[int, int] | None:
    """The size of an image as the file says it, there or at its video."""
    return _size(image, path) or _size(tables.videos.get(image.get("video_id"), {}), path)


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        return None
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise UserError(f"boxes {path}: {entry.get('file_name', entry.get('id'))} has a bad size {width}x{height}")
    return height, width


def _footage(tables: Tables, rows: dict[Any, list[_Row]], path: Path) -> tuple[Footage, ...]:
    where = f"boxes {path}"
    frames: dict[Any, dict[int, FrameBoxes]] = {key: {} for key in tables.videos}
    sizes = {key: _size(row, path) for key, row in tables.videos.items()}
    stills: list[Footage] = []
    for key, image in tables.images.items():
        boxes, home = _stacked(rows[key]), image.get("video_id")
        if home is None:
            name = path.parent / str(value_of(image, "file_name", where, "images"))
            stills.append(Footage(name, _split(image, path), _size(image, path), {0: boxes}, still=True))
        elif home not in tables.videos:
            raise unknown_video(where, key, home)
        elif (number := frame_number(image)) is None:
            raise UserError(f"{where}: image {key!r} of video {home!r} has no 'frame_index' from 0 on")
        else:
            frames[home][number] = boxes
            size = _size(image, path)
            if None not in (size, sizes[home]) and size != sizes[home]:
                raise UserError(f"{where}: image {key!r} of video {home!r} has another size than the video's others")
            sizes[home] = sizes[home] or size
    clips = [
        Footage(path.parent / str(value_of(row, "file_name", where, "videos")), _split(row, path), sizes[key], known)
        for key, row in tables.videos.items()
        if (known := frames[key])
    ]  # fmt: skip
    return (*clips, *stills)


def _split(entry: dict[str, Any], path: Path) -> str:
    split = entry.get("split", "")
    if split not in (*SPLITS, ""):
        raise UserError(f"boxes {path}: unknown split {split!r}{nearest(split, SPLITS)}; use {', '.join(SPLITS)}")
    return str(split)


def _stacked(rows: Sequence[_Row]) -> FrameBoxes:
    single, crowd = ([row[:2] for row in rows if row[2] == kind] for kind in (False, True))
    return FrameBoxes(*_arrays(single), FrameBoxes(*_arrays(crowd)) if crowd else None)


def _arrays(rows: Sequence[tuple[_Corners, int]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    boxes = np.asarray([box for box, _ in rows], np.float32).reshape(-1, 4)
    return boxes, np.asarray([label for _, label in rows], np.int64)
