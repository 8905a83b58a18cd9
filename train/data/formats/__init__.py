"""The layouts people have, one file each: ``data.format`` names one, "auto" finds it.

A format has ``found(where)``, whether the data look like it, and ``read(where)``, the clips. Adding one is one file and
one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from toolkit.errors import UserError, nearest
from train.data.clip import Clip
from train.data.formats import coco, folders, hmdb51, kinetics, shards, something, table, ucf101
from train.data.formats.reading import Where

__all__ = ["FORMATS", "Format", "Where", "read_clips"]


@dataclass(frozen=True, slots=True)
class Format:
    """What it looks like, its two functions, and whether ``videos`` and ``fold`` mean something to it."""

    looks: str
    found: Callable[[Where], bool]
    read: Callable[[Where], list[Clip]]
    videos: bool = True
    folds: bool = False


FORMATS = {
    "folders": Format("<class>/*.mp4 or <split>/<class>/*.mp4", folders.found, folders.read, videos=False),
    "csv": Format("a CSV with columns path,label[,split][,group][,start,end]", table.found, table.read),
    "kinetics": Format("a CSV with columns label,youtube_id,time_start,time_end,split", kinetics.found, kinetics.read),
    "ucf101": Format("classInd.txt, trainlist01.txt, testlist01.txt", ucf101.found, ucf101.read, folds=True),
    "hmdb51": Format("<class>_test_split1.txt", hmdb51.found, hmdb51.read, folds=True),
    "something": Format("labels.json, train.json, validation.json", something.found, something.read),
    "coco": Format("a JSON with images, annotations, categories", coco.found, coco.read),
    "shards": Format("tar shards: a folder, {000..009}.tar, or a URL", shards.found, shards.read, videos=False),
}


def read_clips(where: Where, name: str = "auto") -> list[Clip]:
    """The clips of the data, in the named format or in the only one that it looks like.

    Raises:
        UserError: unknown, ambiguous or unrecognised format, or whatever that format finds wrong.
    """
    if name == "auto":
        name = _guess(where)
    if name not in FORMATS:
        raise UserError(f"unknown data.format {name!r}{nearest(name, FORMATS)}; formats: auto, {', '.join(FORMATS)}")
    kind = FORMATS[name]
    if where.videos is not None and not kind.videos:
        raise UserError(
            f"data {where.name}: format {name} has no list whose videos could lie elsewhere: leave out data.videos "
            "(--videos), and let the data be the folder itself"
        )
    if where.fold != 1 and not kind.folds:
        raise UserError(f"data {where.name}: format {name} has no folds, UCF101 and HMDB51 have: leave out data.fold "
                        "(--fold)")  # fmt: skip
    return kind.read(where)


def _guess(where: Where) -> str:
    """Lists beside class folders name the videos in them, so folders count only alone."""
    looks_like = [name for name, kind in FORMATS.items() if name != "folders" and kind.found(where)]
    if len(looks_like) == 1 and not ("shards" in looks_like and folders.found(where)):
        return looks_like[0]
    if not looks_like and where.root.is_dir():
        return "folders"
    if looks_like:
        several = looks_like if len(looks_like) > 1 else [*looks_like, "folders"]
        raise UserError(f"data {where.name} looks like {' and like '.join(several)}: set data.format to one of them")
    known = "; ".join(f"{name}: {kind.looks}" for name, kind in FORMATS.items())
    raise UserError(f"data {where.name} is of no known format, known are: {known}")
