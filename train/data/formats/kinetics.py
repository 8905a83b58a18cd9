"""Kinetics: ``label,youtube_id,time_start,time_end,split`` (Kay et al. 2017), one CSV or a folder of them.

A video is looked for by name anywhere below the videos' folder: trimmed, ``ID_000012_000022.mp4``, or whole,
``ID.mp4``, of which the times are then cut. Videos that no longer exist on the net are usual: they count as broken.
"""

from pathlib import Path

from toolkit.errors import UserError
from toolkit.progress import note
from train.data.clip import SPLITS, Clip, split_name
from train.data.formats.reading import (
    OneLabel,
    Where,
    header,
    list_files,
    need_columns,
    read_table,
    seconds,
    video_stem,
    videos_by_stem,
)

__all__ = ["found", "read"]

_COLUMNS = ("youtube_id", "time_start", "time_end")


def _lists(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".csv" and "youtube_id" in header(root) else []
    return [path for path in list_files(root, "*.csv") if "youtube_id" in header(path)] if root.is_dir() else []


def found(where: Where) -> bool:
    """Whether there is a CSV with a column youtube_id."""
    return bool(_lists(where.root))


def read(where: Where) -> list[Clip]:
    """One clip a line with a label; lines without one (the hidden test set) are left out and counted.

    Raises:
        UserError: a missing column, or bad times.
    """
    lists = _lists(where.root)
    if not lists:
        raise UserError(
            f"data {where.root} is no Kinetics list: expected a CSV with columns label,{','.join(_COLUMNS)}"
        )
    videos = videos_by_stem(where.folder)
    clips, unlabelled = [], 0
    for path in lists:
        columns, rows = read_table(path)
        need_columns(path, columns, _COLUMNS)
        of_file = next((split for split in SPLITS if split in path.stem), "")
        one = OneLabel(path)
        for number, row in rows:
            if not row.get("label"):
                unlabelled += 1
                continue
            clip = _clip(path, number, row, of_file, where.folder, videos)
            one.note((clip.group, row["time_start"], row["time_end"]), clip.group, clip.label, number)
            clips.append(clip)
    if unlabelled:
        note(f"data {where.root}: left out {unlabelled} lines without a label")
    return clips


def _clip(path: Path, number: int, row: dict[str, str], split: str, folder: Path, videos: dict[str, Path]) -> Clip:
    name = video_stem(row["youtube_id"])
    if not name:
        raise UserError(f"data {path}, line {number}: youtube_id is empty")
    start_s, end_s = seconds(path, number, row, "time_start", "time_end")
    named = split_name(row.get("split") or split)
    if start_s is not None and end_s is not None:
        for stem in (f"{name}_{int(start_s):06d}_{int(end_s):06d}", f"{name}_{int(start_s)}_{int(end_s)}"):
            if stem in videos:
                return Clip(videos[stem], row["label"], named, name)
    return Clip(videos.get(name, folder / f"{name}.mp4"), row["label"], named, name, (start_s, end_s))
