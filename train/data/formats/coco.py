"""COCO-style JSON for frames or videos: ``categories``, ``images``, ``annotations`` and, for videos, ``videos``.

Frames of a video file: each image says ``video_id`` and ``frame_index`` (or ``frame_id``), and ``videos`` the file.
Frames as picture files: images of one ``video_id`` or one folder make a clip, in the order of their frame index or
name. Boxes are ``[x, y, width, height]`` in pixels. A video or image may say its ``split``; a file named
``instances_train*.json`` says it for all. A clip's labels are the categories in it.
"""

import re
from pathlib import Path
from typing import Any

from toolkit.coco import Tables, coco_tables, corners, frame_number, unknown_video, value_of
from toolkit.errors import UserError
from train.data.clip import SPLITS, Box, Clip, lone_group, split_name
from train.data.formats.reading import Where, list_files, portable, read_json

__all__ = ["categories", "found", "read"]


_FIRST = re.compile(r'[\ufeff\s]*\{\s*("(info|licenses|type|categories|videos|images|annotations)"|\}|$)')


def _lists(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" and root.name != "index.json" else []
    if not root.is_dir():
        return []
    named = [*list_files(root, "instances_*.json"), *list_files(root, "annotations/instances_*.json")]
    return sorted(named or [p for s in SPLITS if (p := root / f"{s}.json").is_file() and _begins(p)])


def _begins(path: Path) -> bool:
    """Whether the JSON is an object whose first part is one of COCO's."""
    with path.open(errors="replace") as file:
        return bool(_FIRST.match(file.read(100)))


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
    return tuple(sorted({name for path in _lists(root) for name in _tables(path).names.values() if name}))


def _tables(path: Path) -> Tables:
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("categories") == []:
        raise UserError(f"data {path} names no category: a detector needs at least one")
    return coco_tables(raw, f"data {path}")


def _clips(path: Path, where: Where, by_name: bool) -> list[Clip]:
    tables = _tables(path)
    boxes = {image: [(name, corners(row, f"data {path}")) for name, row in rows]
             for image, rows in tables.annotations.items()}  # fmt: skip
    split = next((s for s in SPLITS if by_name and s in path.stem), "")
    groups: dict[Any, list[Any]] = {key: [] for key in tables.videos}
    for key, image in tables.images.items():
        home = image.get("video_id", Path(str(image.get("file_name", key))).parent.as_posix())
        if tables.videos and home not in tables.videos:
            raise unknown_video(f"data {path}", key, home)
        groups.setdefault(home, []).append((key, image))
    return [_clip(path, where, home, tables.videos.get(home), members, boxes, split)
            for home, members in groups.items()]  # fmt: skip


def _clip(path: Path, where: Where, home: Any, video: Any, members: list[Any], boxes: Any, split: str) -> Clip:
    members = sorted(members, key=lambda pair: (frame_number(pair[1]) or 0, str(pair[1].get("file_name", ""))))
    info = video or (members[0][1] if members else {})
    file = (video or {}).get("file_name") or (video or {}).get("name")
    images: tuple[Path, ...] = ()
    if not file:
        images = tuple(
            where.folder / portable(str(value_of(image, "file_name", f"data {path}", "images"))) for _, image in members
        )
    place = where.folder / portable(str(file)) if file else images[0].parent
    found, annotated = [], []
    for number, (key, image) in enumerate(members):
        frame = number if images else frame_number(image)
        if frame is None:
            raise UserError(f"data {path}: image {key!r} of video {home!r} has no frame_index")
        annotated.append(frame)
        found += [Box(frame, label, corners) for label, corners in boxes.get(key, ())]
    labels = ";".join(sorted({box.label for box in found}))
    named = split_name(str(info.get("split") or split))
    group = str(info.get("group") or (home if images else lone_group(str(file))))
    return Clip(place, labels, named, group, images=images, boxes=tuple(found), annotated=tuple(annotated))
