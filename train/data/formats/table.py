"""A CSV with one line a clip: ``path,label`` and what else is known.

``split`` (train, val, test), ``group`` / ``source_group`` / ``subject`` (never straddles two splits), ``start`` and
``end`` in seconds. Several labels stand in one column separated by ``;``, or in ``label``, ``label_2``, ``label_3``...
Every other column is metadata.
"""

import re
from pathlib import Path

from toolkit.errors import UserError
from train.data.clip import Clip, lone_group, split_name
from train.data.formats.reading import OneLabel, Where, header, need_columns, portable, read_table, seconds

__all__ = ["found", "read"]

_GROUPS = ("group", "source_group", "subject")
_KNOWN = ("path", "split", *_GROUPS, "fold", "start", "end")
_LABEL = re.compile(r"^labels?([ _]?\d+)?$")


def found(where: Where) -> bool:
    """Whether it is a CSV, unless it is one of Kinetics."""
    return where.root.is_file() and where.root.suffix.lower() == ".csv" and "youtube_id" not in header(where.root)


def read(where: Where) -> list[Clip]:
    """One clip a line.

    Raises:
        UserError: a missing column or value, bad times, or one video with two labels.
    """
    path = where.root
    columns, rows = read_table(path)
    label_columns = [column for column in columns if _LABEL.match(column)]
    need_columns(path, columns, ["path"] if label_columns else ["path", "label"])
    extra = [column for column in columns if column not in (*_KNOWN, *label_columns) and column]
    clips, one = [], OneLabel(path)
    for number, row in rows:
        label = ";".join(row[column] for column in label_columns if row[column])
        if not row["path"] or not label:
            raise UserError(f"data {path}, line {number}: path or label is empty")
        if "\0" in row["path"]:
            raise UserError(f"data {path}, line {number}: the path holds a zero byte")
        group = next((row[name] for name in _GROUPS if row.get(name)), lone_group(row["path"]))
        meta = tuple((column, row[column]) for column in extra)
        span = seconds(path, number, row, "start", "end")
        one.note((row["path"], span), Path(portable(row["path"])).name, label, number)
        clips.append(
            Clip(where.folder / portable(row["path"]), label, split_name(row.get("split", "")), group, span, meta)
        )
    return clips
