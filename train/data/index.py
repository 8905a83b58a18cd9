"""Find labelled clips: a folder per class, split folders, or a CSV; and split them without leaks.

Clips of one ``group`` (one source video, one person) never straddle two splits: random splits of neighbouring
clips flatter a model by many points.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.errors import UserError, nearest
from toolkit.video import VIDEO_SUFFIXES

__all__ = ["SPLITS", "Clip", "Dataset", "index_clips"]

SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "label", "split", "group", "source_group", "fold")


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled video file."""

    path: Path
    label: str
    split: str
    group: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labels in sorted order and all clips."""

    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]

    def split(self, name: str) -> tuple[Clip, ...]:
        """The clips of one split.

        Raises:
            UserError: unknown split, or one without clips.
        """
        if name != "all" and name not in SPLITS:
            raise UserError(f"unknown split {name!r}{nearest(name, SPLITS)}; splits: {', '.join(SPLITS)}, all")
        found = self.clips if name == "all" else tuple(clip for clip in self.clips if clip.split == name)
        if not found:
            raise UserError(f"data {self.root} has no clip in split {name!r}: add some, or choose another split")
        return found

    def digest(self) -> str:
        """A hash of what the data are, wherever they lie: each clip's name, label, split, group and size."""
        base = self.root if self.root.is_dir() else self.root.parent
        rows = [
            [os.path.relpath(clip.path, base), clip.label, clip.split, clip.group, _size(clip.path)]
            for clip in self.clips
        ]
        return hashlib.sha256(json.dumps([self.labels, rows]).encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of clips by split and label."""
        found = Counter((clip.split, clip.label) for clip in self.clips)
        return {s: {label: found[s, label] for label in self.labels} for s in SPLITS}


def index_clips(
    root: Path, labels: tuple[str, ...] | None = None, splits: Literal["make", "given"] = "make"
) -> Dataset:
    """Index ``<split>/<class>/*``, ``<class>/*`` or a CSV (``path,label[,split][,group]``).

    Data without splits gets a deterministic one by group (80/10/10), or with ``splits = "given"`` is all "test".
    ``labels`` fixes the label order, for evaluating a trained model; a label outside it is an error.

    Raises:
        UserError: missing or empty data, one class only, missing CSV column, unknown label.
    """
    if not root.exists():
        raise UserError(f"data {root} does not exist: check the path (data.root in the recipe, or --data)")
    clips = _from_csv(root) if root.is_file() else _from_folders(root)
    if not clips:
        kinds = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"data {root} holds no video: expected <class>/*.mp4 or <split>/<class>/*.mp4 ({kinds})")
    found = tuple(sorted({clip.label for clip in clips}))
    if labels is None and len(found) < 2:
        raise UserError(f"data {root} has only one class ({found[0]}): a classifier needs at least two")
    for label in found:
        if labels is not None and label not in labels:
            raise UserError(f"data {root}: label {label!r} was not in training{nearest(label, labels)}; "
                            f"the model knows: {', '.join(labels)}")  # fmt: skip
    if not any(clip.split for clip in clips):
        whole = [Clip(clip.path, clip.label, "test", clip.group) for clip in clips]
        clips = _split_by_group(clips) if splits == "make" else whole
    elif unknown := sorted({clip.split for clip in clips} - set(SPLITS)):
        raise UserError(
            f"data {root}: unknown split {unknown[0]!r}{nearest(unknown[0], SPLITS)}; use {', '.join(SPLITS)}"
        )
    return Dataset(root, labels or found, tuple(clips))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _from_folders(root: Path) -> list[Clip]:
    splits = [folder for folder in _folders(root) if folder.name in SPLITS]
    clips = []
    for split in splits or [root]:
        for folder in _folders(split):
            name = split.name if splits else ""
            clips += [Clip(path, folder.name, name, path.stem) for path in _videos(folder)]
    return clips


def _from_csv(path: Path) -> list[Clip]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data {path} is not a readable CSV file: {error}") from error
    columns = list(rows[0]) if rows else []
    for name in ("path", "label"):
        if rows and name not in columns:
            raise UserError(
                f"data {path} has no column {name!r}{nearest(name, columns)}; columns: {', '.join(columns)}"
            )
    clips = []
    for number, row in enumerate(rows, start=2):
        if not row["path"] or not row["label"]:
            raise UserError(f"data {path}, line {number}: path or label is empty")
        file_path = path.parent / row["path"]
        group = row.get("group") or row.get("source_group") or Path(row["path"]).stem
        clips.append(Clip(file_path, row["label"], row.get("split") or "", group))
    return clips


def _split_by_group(clips: list[Clip]) -> list[Clip]:
    """80/10/10 by a hash of the group, so that adding clips never moves the others."""

    def place(group: str) -> str:
        share = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"

    return [Clip(clip.path, clip.label, place(clip.group), clip.group) for clip in clips]
