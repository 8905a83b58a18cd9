"""COCO-style JSON for frames or videos: ``categories``, ``images``, ``annotations`` and, for videos, ``videos``.

Frames of a video file: each image says ``video_id`` and ``frame_index`` (or ``frame_id``), and ``videos`` the file.
Frames as picture files: images of one ``video_id`` or one folder make a clip, in the order of their frame index or
name. Boxes are ``[x, y, width, height]`` in pixels. A video or image may say its ``split``; a file named
``instances_train*.json`` says it for all. A clip's labels are the categories in it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from train.data.clip import SPLITS, Box, Clip, split_name
from train.data.formats.reading import Where, read_json

__all__ = ["categories", "found", "read"]

_PARTS = ("categories", "images", "annotations")


def _lists(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" and root.name != "index.json" else []
    if not root.is_dir():
        return []
    named = [*root.glob("instances_*.json"), *root.glob("annotations/instances_*.json")]
    return sorted(named or [p for s in SPLITS if (p := root / f"{s}.json").is_file() and _is_object(p)])


def _is_object(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return file.read(100).lstrip("\ufeff \n\r\t").startswith("{")


def found(where: Where) -> bool:
    """Whether it is a JSON file, or a folder with instances_*.json, train.json or val.json."""
    return bool(_lists(where.root))


def read(where: Where) -> list[Clip]:
    """One clip a video, or a folder of frames.

    Raises:
        UserError: a part or a value is missing, or an annotation names what is not there.
    """
    lists = _lists(where.root)
    if not lists:
        raise UserError(f"data {where.root} is no COCO list: expected a JSON file, or instances_*.json in the folder")
    return [clip for path in lists for clip in _clips(path, where, len(lists) > 1 or where.root.is_dir())]


def categories(root: Path) -> tuple[str, ...]:
    """All categories of the lists, sorted, those without a box too."""
    names = {str(row.get("name", "")) for path in _lists(root) for row in _parts(path)["categories"]}
    return tuple(sorted(name for name in names if name))


def _parts(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"data {path} is not COCO: it is no JSON object")
    for part in _PARTS:
        if not isinstance(raw.get(part), list):
            raise UserError(f"data {path} is not COCO: the list {part!r} is missing")
    if not raw["categories"]:
        raise UserError(f"data {path} names no category: a detector needs at least one")
    return raw


def _clips(path: Path, where: Where, by_name: bool) -> list[Clip]:
    raw = _parts(path)
    names = {_value(path, "categories", row, "id"): str(_value(path, "categories", row, "name"))
             for row in raw["categories"]}  # fmt: skip
    images = {_value(path, "images", row, "id"): row for row in raw["images"]}
    boxes: dict[Any, list[tuple[str, tuple[float, float, float, float]]]] = {}
    for row in raw["annotations"]:
        image, category = (_value(path, "annotations", row, key) for key in ("image_id", "category_id"))
        for kind, key, known in (("image", image, images), ("category", category, names)):
            if key not in known:
                raise UserError(f"data {path}: annotation {row.get('id')} is of {kind} {key!r}, which is not there")
        boxes.setdefault(image, []).append((names[category], _corners(path, row)))
    split = next((s for s in SPLITS if by_name and s in path.stem), "")
    videos = {_value(path, "videos", row, "id"): row for row in raw.get("videos", [])}
    groups: dict[Any, list[Any]] = {key: [] for key in videos}
    for key, image in images.items():
        home = image.get("video_id", Path(str(image.get("file_name", key))).parent.as_posix())
        if videos and home not in videos:
            raise UserError(f"data {path}: image {key!r} is of video {home!r}, which is not in 'videos'")
        groups.setdefault(home, []).append((key, image))
    return [_clip(path, where, home, videos.get(home), members, boxes, split) for home, members in groups.items()]


def _clip(path: Path, where: Where, home: Any, video: Any, members: list[Any], boxes: Any, split: str) -> Clip:
    members = sorted(members, key=lambda pair: (_frame(pair[1], 0), str(pair[1].get("file_name", ""))))
    info = video or (members[0][1] if members else {})
    file = (video or {}).get("file_name") or (video or {}).get("name")
    images: tuple[Path, ...] = ()
    if not file:
        images = tuple(where.folder / str(_value(path, "images", image, "file_name")) for _, image in members)
    place = where.folder / str(file) if file else images[0].parent
    found, annotated = [], []
    for number, (key, image) in enumerate(members):
        frame = number if images else _frame(image, None)
        if frame is None:
            raise UserError(f"data {path}: image {key!r} of video {home!r} has no frame_index")
        annotated.append(frame)
        found += [Box(frame, label, corners) for label, corners in boxes.get(key, ())]
    labels = ";".join(sorted({box.label for box in found}))
    named = split_name(str(info.get("split") or split))
    group = str(info.get("group") or (home if images else Path(str(file)).stem))
    return Clip(place, labels, named, group, images=images, boxes=tuple(found), annotated=tuple(annotated))


def _value(path: Path, part: str, row: Any, key: str) -> Any:
    if not isinstance(row, dict) or row.get(key) is None or not isinstance(row[key], str | int):
        raise UserError(f"data {path} is not COCO: an entry of {part!r} has no {key!r}")
    return row[key]


def _frame(image: dict[str, Any], default: int | None) -> int | None:
    value = image.get("frame_index", image.get("frame_id", default))
    return value if isinstance(value, int) and value >= 0 else default


def _corners(path: Path, row: dict[str, Any]) -> tuple[float, float, float, float]:
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not _positive(box):
        raise UserError(f"data {path}: annotation {row.get('id')} has bbox {box}: expected [x, y, width, height], "
                        "with width and height above 0")  # fmt: skip
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _positive(box: Iterable[Any]) -> bool:
    values = list(box)
    return all(isinstance(value, int | float) for value in values) and values[2] > 0 and values[3] > 0
