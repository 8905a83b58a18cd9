"""Something-Something v2 (Goyal et al. 2017): ``labels.json``, ``train.json``, ``validation.json``, videos ``ID.webm``.

The class is the template without its brackets ("Pushing [something] from left to right"); what filled them is
metadata. The test list carries no labels; with ``test-answers.csv`` beside it, it is the test split.
"""

from pathlib import Path
from typing import Any

from toolkit.errors import UserError, nearest
from train.data.clip import Clip
from train.data.formats.reading import (
    Where,
    list_files,
    list_folders,
    read_json,
    read_lines,
    video_stem,
    videos_by_stem,
)

__all__ = ["found", "read"]

_SPLITS = {"train.json": "train", "validation.json": "val"}


def _file(folder: Path, ending: str) -> Path | None:
    """``train.json`` or ``something-something-v2-train.json``."""
    return next((path for path in list_files(folder, f"*{ending}")), None)


def _folder(root: Path) -> Path | None:
    folders = (root, *list_folders(root)) if root.is_dir() else ()
    needed = ("labels.json", "train.json")
    return next((folder for folder in folders if all(_file(folder, ending) for ending in needed)), None)


def found(where: Where) -> bool:
    """Whether labels.json and train.json are there."""
    return _folder(where.root) is not None


def read(where: Where) -> list[Clip]:
    """The clips of the training and validation lists.

    Raises:
        UserError: a list is absent or of another form, or a template is no class.
    """
    folder = _folder(where.root)
    if folder is None:
        raise UserError(f"data {where.root} holds no labels.json and train.json of Something-Something")
    labels_file = _file(folder, "labels.json")
    assert labels_file is not None
    labels = read_json(labels_file)
    if not isinstance(labels, dict):
        raise UserError(f"data {labels_file} is not a JSON object of class -> number")
    if labels and all(str(key).isdigit() for key in labels):  # number -> class
        labels = {str(value): key for key, value in labels.items()}
    videos = videos_by_stem(where.videos or where.root)
    clips = []
    for ending, split in _SPLITS.items():
        path = _file(folder, ending)
        if path is not None:
            clips += [_clip(path, n, e, split, labels, where, videos) for n, e in enumerate(_entries(path), start=1)]
    return clips + _answered(folder, labels, where, videos)


def _entries(path: Path) -> list[Any]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"data {path} is not a JSON list of videos")
    return entries


def _clip(
    path: Path, number: int, entry: Any, split: str, labels: dict[str, Any], where: Where, videos: dict[str, Path]
) -> Clip:
    if not isinstance(entry, dict) or not entry.get("id") or not entry.get("template"):
        raise UserError(f"data {path}, entry {number}: id or template is missing")
    name, label = video_stem(str(entry["id"])), str(entry["template"]).replace("[", "").replace("]", "")
    _known(path, f"entry {number}", label, labels)
    filled = "; ".join(str(word) for word in entry.get("placeholders", ()))
    return Clip(_video(name, where, videos), label, split, name, meta=(("placeholders", filled),))


def _known(path: Path, place: str, label: str, labels: dict[str, Any]) -> None:
    if label not in labels:
        raise UserError(f"data {path}, {place}: class {label!r} is not in labels.json{nearest(label, labels)}")


def _video(name: str, where: Where, videos: dict[str, Path]) -> Path:
    return videos.get(name, (where.videos or where.root) / f"{name}.webm")


def _answered(folder: Path, labels: dict[str, Any], where: Where, videos: dict[str, Path]) -> list[Clip]:
    """``id;class`` lines of the published answers."""
    path = _file(folder, "test-answers.csv")
    clips = []
    for number, line in read_lines(path) if path is not None else []:
        name, mark, label = line.partition(";")
        assert path is not None
        if not mark or not name.strip():
            raise UserError(f"data {path}, line {number}: {line!r} is not 'id;class'")
        name = video_stem(name.strip())
        _known(path, f"line {number}", label.strip(), labels)
        clips.append(Clip(_video(name, where, videos), label.strip(), "test", name, meta=(("placeholders", ""),)))
    return clips
