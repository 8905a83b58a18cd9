"""HMDB51 (Kuehne et al. 2011): one list a class and fold, ``brush_hair_test_split1.txt``: ``video.avi 1``.

1 is training, 2 is test, 0 is in neither. The group is what stands before the class in the file's name (the film).
"""

import re
from pathlib import Path

from toolkit.errors import UserError
from train.data.clip import Clip
from train.data.formats.reading import (
    OneLabel,
    Where,
    list_files,
    list_folders,
    portable,
    read_lines,
    video_stem,
    videos_by_stem,
)

__all__ = ["found", "read"]

_LIST = re.compile(r"^(?P<label>.+)_test_split(?P<fold>\d)\.txt$")
_SPLITS = {"1": "train", "2": "test"}
_MARKS = {"0": "unused", "1": "training", "2": "test"}


def _lists(root: Path) -> list[Path]:
    folders = (root, *list_folders(root)) if root.is_dir() else ()
    return next((found for folder in folders if (found := list_files(folder, "*_test_split[0-9].txt"))), [])


def found(where: Where) -> bool:
    """Whether there are lists of that name."""
    return bool(_lists(where.root))


def read(where: Where) -> list[Clip]:
    """The clips of one fold.

    Raises:
        UserError: no list of that fold, or a line is of another form.
    """
    lists = [(path, match) for path in _lists(where.root) if (match := _LIST.match(path.name))]
    chosen = [(path, match["label"]) for path, match in lists if int(match["fold"]) == where.fold]
    if not chosen:
        folds = ", ".join(sorted({match["fold"] for _, match in lists})) or "none"
        raise UserError(f"data {where.root} has no *_test_split{where.fold}.txt: data.fold = {where.fold}, "
                        f"folds there: {folds}")  # fmt: skip
    videos = videos_by_stem(where.folder)
    clips = []
    for path, label in chosen:
        one = OneLabel(path, "remove one")
        for number, line in read_lines(path):
            name, mark = ("", "") if len(parts := line.rsplit(maxsplit=1)) < 2 else parts
            if mark not in ("0", "1", "2"):
                raise UserError(f"data {path}, line {number}: {line!r} is not 'video.avi 0|1|2'")
            stem = video_stem(name)
            one.note(stem, stem, f"{mark} ({_MARKS[mark]})", number)
            if mark != "0":
                file = videos.get(stem, where.folder / label / portable(name))
                clips.append(Clip(file, label, _SPLITS[mark], stem.partition(f"_{label}_")[0]))
    return clips
