"""UCF101 (Soomro et al. 2012): ``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``; ``data.fold`` is 1, 2 or 3.

The group is the one of the file's name (``v_Archery_g08_c03.avi``: clips of one group come from one video).
"""

import re
from pathlib import Path

from toolkit.errors import UserError, nearest
from train.data.clip import Clip
from train.data.formats.reading import (
    Where,
    list_files,
    list_folders,
    portable,
    read_lines,
    video_stem,
    videos_by_stem,
)

__all__ = ["found", "read"]

_CLASSES = "classInd.txt"
#: A file, and in training lists the number of its class.
_LINE = re.compile(r"^(?P<name>.*?)(?:\s+(?P<index>\d+))?$")
_GROUP = re.compile(r"^v_(.+_g\d+)_c\d+$")


def _folder(root: Path) -> Path | None:
    """Where the lists lie: the root or a folder in it."""
    if not root.is_dir():
        return None
    folders = (root, *list_folders(root))
    with_classes = (folder for folder in folders if (folder / _CLASSES).is_file())
    with_lists = (folder for folder in folders if list_files(folder, "trainlist0[1-3].txt"))
    return next(with_classes, next(with_lists, None))


def found(where: Where) -> bool:
    """Whether there are its lists."""
    return _folder(where.root) is not None


def read(where: Where) -> list[Clip]:
    """The clips of one fold.

    Raises:
        UserError: a list is absent, or a line is of another form.
    """
    lists = _folder(where.root)
    if lists is None or not (lists / _CLASSES).is_file():
        raise UserError(f"data {lists or where.root} holds no {_CLASSES}: give the folder of UCF101's split lists")
    classes = _numbered(lists / _CLASSES)
    entries = []
    for split in ("train", "test"):
        path = lists / f"{split}list{where.fold:02d}.txt"
        if not path.is_file():
            there = ", ".join(file.name for file in list_files(lists, f"{split}list*.txt")) or "none"
            raise UserError(f"data {path} does not exist: data.fold = {where.fold}, lists there: {there}")
        for number, line in read_lines(path):
            entries.append((split, *_entry(path, number, line, classes)))
    names = [name for _, name, _ in entries]
    return [
        Clip(file, label, split, _group(name))
        for (split, name, label), file in zip(entries, _files(where, lists, names), strict=True)
    ]


def _numbered(path: Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    for number, line in read_lines(path):
        index, label = ("", "") if len(parts := line.split(maxsplit=1)) < 2 else parts
        if not index.isdigit():
            raise UserError(f"data {path}, line {number}: {line!r} is not 'number class'")
        if classes.setdefault(index, label) != label:
            raise UserError(f"data {path}, line {number}: {index} is {label!r} here and {classes[index]!r} before")
    return classes


def _entry(path: Path, number: int, line: str, classes: dict[str, str]) -> tuple[str, str]:
    """(file, class): by the number behind it in a train list, by its folder in a test list; the two must agree."""
    match = _LINE.match(line)
    assert match is not None
    name, index = portable(match["name"]), match["index"]
    folder = Path(name).parent.name
    label = classes.get(index) if index else folder
    if label not in classes.values():
        what = f"{line!r} names no class of {_CLASSES}{'' if index else nearest(folder, classes.values())}"
        raise UserError(f"data {path}, line {number}: {what}")
    if label != folder and folder in classes.values():
        raise UserError(f"data {path}, line {number}: {line!r} is in the folder of {folder!r}, but {index} is "
                        f"{label!r} in {_CLASSES}: do both count from 1?")  # fmt: skip
    return name, str(label)


def _files(where: Where, lists: Path, names: list[str]) -> list[Path]:
    """The videos of the lists; where the first is not there as it is named, all are sought by their names alone."""
    near = (where.videos,) if where.videos else (lists, lists / "UCF-101", lists.parent, lists.parent / "UCF-101")
    folder = next((folder for folder in near if names and (folder / names[0]).exists()), None)
    if folder is not None or not names:
        return [(folder or lists) / name for name in names]
    home = next((folder for folder in near if (folder / Path(names[0]).parent).is_dir()), near[0])
    videos = videos_by_stem(home)  # encoded again: in a container of another name
    return [videos.get(video_stem(name), home / name) for name in names]


def _group(name: str) -> str:
    stem = video_stem(name)
    match = _GROUP.match(stem)
    return match.group(1) if match else stem
