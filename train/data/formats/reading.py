"""What the formats share: list files read with one clear line for each mistake, and videos found by name."""

import csv
import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.errors import UserError, nearest
from toolkit.video import VIDEO_SUFFIXES

__all__ = ["OneLabel", "Where", "header", "is_url", "list_files", "list_folders", "list_videos", "need_columns",
           "portable", "read_json", "read_lines", "read_table", "read_text", "seconds", "video_stem",
           "videos_by_stem"]  # fmt: skip

_URL = re.compile(r"^(https?):/+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Where:
    """root: the list file, folder or URL; videos: where its videos lie, if elsewhere; fold: which published split.

    Without ``labelled``, videos that lie in no class folder are welcome.
    """

    root: Path
    videos: Path | None = None
    fold: int = 1
    labelled: bool = True

    @property
    def name(self) -> str:
        """The root as the user wrote it: a path swallows one slash of a URL."""
        return _URL.sub(r"\1://", self.root.as_posix()) if is_url(self.root) else str(self.root)

    @property
    def folder(self) -> Path:
        """The folder of the videos, unless the format knows better."""
        return self.videos or (self.root if self.root.is_dir() else self.root.parent)


def is_url(path: Path) -> bool:
    """Whether a path is a URL in truth."""
    return bool(_URL.match(path.as_posix()))


def read_text(path: Path) -> str:
    """The text of a list file, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"data {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"data {path} cannot be read ({error.strerror}): check the path and its permissions") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of each line that is not empty."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: not JSON; the line is named.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        what = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise UserError(f"data {path} is not valid JSON: {what}") from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a CSV, and its rows with their line numbers.

    Raises:
        UserError: not a CSV, a column named twice, or a row with more fields than columns.
    """
    try:
        reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
        lines = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"data {path} is not a readable CSV file: {error}") from error
    if not lines:
        raise UserError(f"data {path} is empty: it needs a header and one line a clip")
    columns = lines[0][1]
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"data {path} has two columns {column!r}: rename one")
    for number, row in lines[1:]:
        if len(row) > len(columns):
            raise UserError(f"data {path}, line {number}: {len(row)} fields for {len(columns)} columns; "
                            "put a field that holds a comma in quotes")  # fmt: skip
    return columns, [(n, dict(zip(columns, row + [""] * len(columns), strict=False))) for n, row in lines[1:]]


def header(path: Path) -> list[str]:
    """The columns of a CSV, or nothing if it is none; used to recognise a format."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return [name.strip() for name in next(csv.reader([file.readline(100_000)]), [])]
    except (OSError, csv.Error):
        return []


def need_columns(path: Path, columns: Iterable[str], needed: Iterable[str]) -> None:
    """Refuse a CSV without a column.

    Raises:
        UserError: the missing column and the nearest there is.
    """
    found = list(columns)
    for name in needed:
        if name not in found:
            if len(found) == 1 and (";" in found[0] or "\t" in found[0]):
                raise UserError(f"data {path} separates its columns by ';' or tabs: save it with commas")
            raise UserError(f"data {path} has no column {name!r}{nearest(name, found)}; columns: {', '.join(found)}")


def seconds(path: Path, number: int, row: dict[str, str], start: str, end: str) -> tuple[float | None, float | None]:
    """The times of a clip inside its video.

    Raises:
        UserError: not a number, negative, or ending before it starts.
    """
    values: list[float | None] = []
    for column in (start, end):
        text = row.get(column, "")
        try:
            value = float(text) if text else None
        except ValueError as error:
            raise UserError(f"data {path}, line {number}: {column} {text!r} is not a number of seconds") from error
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"data {path}, line {number}: {column} is {text}: times are seconds from 0 on")
        values.append(value)
    if values[1] is not None and values[1] <= (values[0] or 0):
        raise UserError(f"data {path}, line {number}: the clip ends at {values[1]:g} s, not after its start "
                        f"({values[0] or 0:g} s)")  # fmt: skip
    return values[0], values[1]


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder by a pattern of their names, without hidden ones (as macOS leaves them on other disks)."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def portable(name: str) -> str:
    """A path as lists of any system write it: Windows puts backslashes between its parts."""
    return name if "/" in name else name.replace("\\", "/")


def video_stem(name: str) -> str:
    """The name of a video by which it is looked for: without folders, and without the suffix if it has one."""
    last = PurePosixPath(portable(name)).name
    return PurePosixPath(last).stem if PurePosixPath(last).suffix.lower() in VIDEO_SUFFIXES else last


class OneLabel:
    """Refuses a list that gives one clip two labels."""

    def __init__(self, path: Path, cure: str = "join labels by ';' or remove one") -> None:
        self._path, self._cure, self._seen = path, cure, dict[Hashable, tuple[str, int]]()

    def note(self, clip: Hashable, name: str, label: str, number: int) -> None:
        """What line ``number`` says of a clip, which people know as ``name``.

        Raises:
            UserError: a line before said otherwise.
        """
        before, line = self._seen.setdefault(clip, (label, number))
        if label != before:
            raise UserError(f"data {self._path}, line {number}: {name} is {label!r} here and {before!r} "
                            f"in line {line}: {self._cure}")  # fmt: skip


def list_videos(folder: Path) -> list[Path]:
    """Video files below a folder, by name, behind links too; hidden ones (as macOS leaves them) are no data.

    Raises:
        UserError: a folder cannot be listed.
    """
    above = frozenset(map(str, Path(os.path.realpath(folder)).parents))
    return sorted(Path(name) for name in _videos_in(str(folder), above))


def _videos_in(folder: str, above: frozenset[str]) -> Iterator[str]:
    """``above``: the folders that this one lies in; a link to one of them would go round for ever."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"data {folder} cannot be listed ({error.strerror}): check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _videos_in(entry.path, above | {real})
        elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # mostly known without asking the disk again
    except OSError:  # a link to itself
        return False


def list_folders(folder: Path) -> list[Path]:
    """Folders in a folder, by name, without hidden ones.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"data {folder} cannot be listed ({error.strerror}): check its permissions") from error


def videos_by_stem(folder: Path) -> dict[str, Path]:
    """Every video below a folder by its name without suffix."""
    if not folder.is_dir():
        raise UserError(f"the videos' folder {folder} does not exist: set data.videos, or --videos")
    return {path.stem: path for path in list_videos(folder)}
