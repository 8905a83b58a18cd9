"""Find labelled clips in any known format, and split them without leaks.

Clips of one ``group`` (one source video, one person) never straddle two splits: random splits of neighbouring
clips flatter a model by many points.
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import UserError, nearest
from toolkit.progress import note
from toolkit.recipe import DataConfig
from toolkit.splits import check_split, group_share, validation_groups
from train.data.clip import SPLITS, Clip
from train.data.formats import Where, read_clips, shards
from train.data.formats.coco import categories
from train.data.formats.reading import is_url

__all__ = ["SPLITS", "Clip", "Dataset", "index_clips", "index_data"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labels in sorted order and all clips.

    ``multi_label``: some clip has several labels, or none. ``taken``: training clips that validate, since no list said
    which do.
    """

    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]
    multi_label: bool = False
    taken: int = 0

    def split(self, name: str) -> tuple[Clip, ...]:
        """The clips of one split.

        Raises:
            UserError: unknown split, or one without clips.
        """
        check_split(name)
        found = self.clips if name == "all" else tuple(clip for clip in self.clips if clip.split == name)
        if not found:
            raise UserError(f"data {self.root} has no clip in split {name!r}: add some, or choose another split")
        return found

    def meta(self) -> dict[str, tuple[str, ...]]:
        """The metadata columns, and the values of each in sorted order."""
        values: dict[str, set[str]] = {}
        for clip in self.clips:
            for column, value in clip.meta:
                values.setdefault(column, set()).update([value] if value else [])
        return {column: tuple(sorted(found)) for column, found in values.items()}

    def digest(self) -> str:
        """A hash of what the data are, wherever they lie: each clip's name, label, split, group, size and the rest."""
        base = self.root if self.root.is_dir() else self.root.parent
        rows = [
            [os.path.relpath(clip.path, base), clip.label, clip.split, clip.group, _size(clip), *_rest(clip)]
            for clip in self.clips
        ]
        return hashlib.sha256(json.dumps([self.labels, rows]).encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of clips by split and label."""
        found = Counter((clip.split, label) for clip in self.clips for label in clip.labels)
        return {s: {label: found[s, label] for label in self.labels} for s in SPLITS}


def index_data(
    config: DataConfig,
    labels: tuple[str, ...] | None = None,
    splits: Literal["make", "given"] = "make",
    labelled: bool = True,
) -> Dataset:
    """The clips of a recipe's ``[data]`` section; the rest as in :func:`index_clips`.

    Where there are training clips and none for validation, ``val_share`` of their groups become "val".
    Without ``labelled`` one class is enough, and videos may lie in no class folder at all.
    """
    where = Where(config.root, config.videos, config.fold, labelled)
    return _with_validation(_index(where, config.format, labels, splits, labelled), config.val_share)


def index_clips(
    root: Path, labels: tuple[str, ...] | None = None, splits: Literal["make", "given"] = "make"
) -> Dataset:
    """Index data of any format that is recognised by itself (``train.data.formats``).

    Data without splits gets a deterministic one by group (80/10/10), or with ``splits = "given"`` is all "test".
    ``labels`` fixes the label order, for evaluating a trained model; a label outside it is an error.

    Raises:
        UserError: missing or empty data, one class only, missing CSV column, unknown label...
    """
    return _index(Where(root), "auto", labels, splits, True)


def _index(
    where: Where, kind: str, labels: tuple[str, ...] | None, splits: Literal["make", "given"], labelled: bool
) -> Dataset:
    root = where.root
    if not (is_url(root) or "{" in root.name or root.exists()):
        raise UserError(f"data {root} does not exist: check the path (data.root in the recipe, or --data)")
    clips = read_clips(where, kind)
    if not clips:
        raise UserError(f"data {where.name} holds no video: its list is empty")
    for clip in clips:
        _refuse_name(clip)
    boxed = any(clip.boxes or clip.annotated for clip in clips)
    _compare_labels(root, clips)
    names = {label for clip in clips for label in clip.labels}
    if boxed:
        names |= {*categories(root), *(shards.labels(where) if shards.found(where) else ())}
    found = tuple(sorted(names))
    if labels is None and labelled and not boxed and len(found) < 2:
        raise UserError(f"data {root} has only one class ({', '.join(found)}): a classifier needs at least two")
    for label in found:
        if labels is not None and label not in labels:
            raise UserError(f"data {root}: label {label!r} was not in training{nearest(label, labels)}; "
                            f"the model knows: {', '.join(labels)}")  # fmt: skip
    if not any(clip.split for clip in clips):
        whole = [dataclasses.replace(clip, split="test") for clip in clips]
        clips = _split_by_group(clips) if splits == "make" else whole
    elif unknown := sorted({clip.split for clip in clips} - set(SPLITS)):
        raise UserError(
            f"data {root}: unknown split {unknown[0]!r}{nearest(unknown[0], SPLITS)}; use {', '.join(SPLITS)}"
        )
    return Dataset(root, labels or found, tuple(clips), any(len(clip.labels) != 1 for clip in clips))


def _refuse_name(clip: Clip) -> None:
    """Names that cannot be written down in UTF-8, or on one line, break lists and messages."""
    name = str(clip.path)
    if not name.isprintable():
        shown = name.encode("unicode_escape").decode()
        raise UserError(f"the file name {shown} is not UTF-8 or holds control characters: rename it")


def _compare_labels(root: Path, clips: list[Clip]) -> None:
    """Labels that differ only in case, spaces or Unicode's two ways to write an accent are likely one class.

    Raises:
        UserError: they also stand in different splits, so what is trained would never be tested.
    """
    first: dict[str, Clip] = {}
    splits: dict[str, set[str]] = {}
    for clip in clips:
        for label in clip.labels:
            first.setdefault(label, clip)
            splits.setdefault(label, set()).add(clip.split)
    alike: dict[str, list[str]] = {}
    for label in sorted(first):
        alike.setdefault("".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    for one, two, *_ in (twins for twins in alike.values() if len(twins) > 1):
        what = (f"data {root}: labels {one!r} ({first[one].name}) and {two!r} ({first[two].name}) differ only in case, "
                "spaces or accents")  # fmt: skip
        if not splits[one] & splits[two]:
            raise UserError(f"{what}, and are in different splits: give them one name")
        note(f"{what}: two classes are made of them")


def _size(clip: Clip) -> int:
    if clip.member is not None or clip.members:
        return sum(member.size for member in (clip.member, *clip.members) if member is not None)
    return sum(path.stat().st_size for path in clip.images or (clip.path,) if path.is_file())


def _rest(clip: Clip) -> list[Any]:
    """What a plain clip does not have, so that its digest stays what it was."""
    rest: list[Any] = [list(clip.span)] if clip.span != (None, None) else []
    rest += [list(clip.meta)] if any(value for _, value in clip.meta) else []
    rest += [clip.member.name] if clip.member is not None else []
    rest += [[p.name for p in clip.images] or [m.name for m in clip.members]] if clip.pictures else []
    return [*rest, [clip.annotated, [dataclasses.astuple(box) for box in clip.boxes]]] if clip.annotated else rest


def _with_validation(data: Dataset, share: float) -> Dataset:
    """Take groups of the training list for validation where no list names any; test clips stay what they are."""
    known = [(label, clip.group) for clip in data.clips if clip.split == "train" for label in clip.labels or ("",)]
    if not known or share <= 0 or any(clip.split == "val" for clip in data.clips):
        return data
    groups = validation_groups(known, share)
    # A group of the test list, too, would leak from there: such data are wrong, but must not become worse.
    groups -= {clip.group for clip in data.clips if clip.split == "test"}
    moved = tuple(
        dataclasses.replace(clip, split="val") if clip.split == "train" and clip.group in groups else clip
        for clip in data.clips
    )
    return dataclasses.replace(data, clips=moved, taken=sum(clip.split == "val" for clip in moved))


def _split_by_group(clips: list[Clip]) -> list[Clip]:
    """80/10/10 by a hash of the group, so that adding clips never moves the others."""

    def place(group: str) -> str:
        share = group_share(group)
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"

    return [dataclasses.replace(clip, split=place(clip.group)) for clip in clips]
