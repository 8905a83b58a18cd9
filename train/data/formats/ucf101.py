"""UCF101 (Soomro et al. 2012): ``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``; ``data.fold`` is 1, 2 or 3.

The group is the one of the file's name (``v_Archery_g08_c03.avi``: clips of one group come from one video).
"""

import re
from pathlib import Path

from toolkit.errors import UserError
from train.data.clip import Clip
from train.data.formats.reading import Where, list_folders, read_lines

__all__ = ["found", "read"]

_CLASSES = "classInd.txt"
_GROUP = re.compile(r"^v_(.+_g\d+)_c\d+$")


def _folder(root: Path) -> Path | None:
    """Where the lists lie: the root or a folder in it."""
    if not root.is_dir():
        return None
    return next((folder for folder in (root, *list_folders(root)) if (folder / _CLASSES).is_file()), None)


def found(where: Where) -> bool:
    """Whether there is a classInd.txt."""
    return _folder(where.root) is not None


def read(where: Where) -> list[Clip]:
    """The clips of one fold.

    Raises:
        UserError: a list is absent, or a line is of another form.
    """
    lists = _folder(where.root)
    if lists is None:
        raise UserError(f"data {where.root} holds no {_CLASSES}: give the folder of UCF101's split lists")
    classes = dict(_numbered(lists / _CLASSES))
    entries = []
    for split in ("train", "test"):
        path = lists / f"{split}list{where.fold:02d}.txt"
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in lists.glob(f"{split}list*.txt"))) or "none"
            raise UserError(f"data {path} does not exist: data.fold = {where.fold}, lists there: {there}")
        for number, line in read_lines(path):
            entries.append((split, *_entry(path, number, line, classes)))
    folder = _videos(where, lists, entries[0][1] if entries else "")
    return [Clip(folder / name, label, split, _group(name)) for split, name, label in entries]


def _numbered(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in read_lines(path):
        index, _, label = line.partition(" ")
        if not index.isdigit() or not label.strip():
            raise UserError(f"data {path}, line {number}: {line!r} is not 'number class'")
        pairs.append((index, label.strip()))
    return pairs


def _entry(path: Path, number: int, line: str, classes: dict[str, str]) -> tuple[str, str]:
    """(file, class): by the number behind it in a train list, by its folder in a test list."""
    name, _, index = line.rpartition(" ") if line.rpartition(" ")[2].isdigit() else (line, "", "")
    label = classes.get(index) if index else Path(name).parent.name
    if label not in classes.values():
        raise UserError(f"data {path}, line {number}: {line!r} names no class of {_CLASSES}")
    return name, str(label)


def _videos(where: Where, lists: Path, first: str) -> Path:
    if where.videos is not None:
        return where.videos
    near = (lists, lists / "UCF-101", lists.parent, lists.parent / "UCF-101")
    return next((folder for folder in near if (folder / first).exists()), lists)


def _group(name: str) -> str:
    match = _GROUP.match(Path(name).stem)
    return match.group(1) if match else Path(name).stem
