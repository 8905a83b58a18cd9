"""A folder per class, alone or inside split folders: ``<class>/**/*.mp4``, ``<split>/<class>/**/*.mp4``."""

from pathlib import Path

from toolkit.errors import UserError
from toolkit.progress import note
from toolkit.video import VIDEO_SUFFIXES
from train.data.clip import SPLITS, Clip, lone_group, split_name
from train.data.formats.reading import Where, list_folders, list_videos

__all__ = ["UNLABELLED", "found", "read"]

#: What videos are labelled that lie in no class folder.
UNLABELLED = "unlabelled"
#: What macOS adds when it packs a folder; it holds no data.
_MACOS = "__MACOSX"


def found(where: Where) -> bool:
    """Whether some folder in the root holds videos."""
    return where.root.is_dir() and any(list_videos(folder) for folder in list_folders(where.root))


def read(where: Where) -> list[Clip]:
    """Every video, labelled by its folder.

    Raises:
        UserError: no video, or the classes lie a level deeper.
    """
    root = where.root
    if not root.is_dir():
        raise UserError(f"data {root} is a file, not a folder of classes: set data.format, or --format")
    folders = list_folders(root)
    splits = [folder for folder in folders if split_name(folder.name) in SPLITS]
    if splits and len(splits) < len(folders):
        others = [folder.name for folder in folders if folder not in splits]
        note(f"data {root}: left out {', '.join(others)} beside the split folders")
    clips = []
    for split in splits or [root]:
        for folder in list_folders(split):
            name = split_name(split.name) if splits else ""
            inside = [Clip(path, folder.name, name, _group(root, path)) for path in list_videos(folder)]
            if where.labelled and not inside and folder.name != _MACOS:
                note(f"data {root}: the class folder {folder.relative_to(root)} holds no video")
            clips += inside
    if not clips and not where.labelled:
        clips = [Clip(path, UNLABELLED, "", _group(root, path)) for path in list_videos(root)]
    if not clips:
        kinds = " ".join(sorted(VIDEO_SUFFIXES))
        loose = f"{len(list_videos(root))} videos lie in no class folder; " if list_videos(root) else ""
        raise UserError(f"data {root} holds no video: {loose}expected <class>/*.mp4 or <split>/<class>/*.mp4 ({kinds})")
    if where.labelled:
        _tell_loose(root, splits)
        _refuse_deeper(root, clips, [folder for folder in folders if folder not in splits])
    return clips


def _tell_loose(root: Path, splits: list[Path]) -> None:
    """Videos beside the class folders have no class."""
    for folder in (root, *splits):
        inside = (path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        if loose := sorted(path.name for path in inside if not path.name.startswith(".")):
            note(f"data {folder}: left out {len(loose)} videos that lie in no class folder: {', '.join(loose[:3])}")


def _refuse_deeper(root: Path, clips: list[Clip], folders: list[Path]) -> None:
    """One folder that itself holds class or split folders is one level too many."""
    if len(folders) == 1 and len({clip.label for clip in clips}) == 1 and clips[0].split == "":
        inner = [folder for folder in list_folders(folders[0]) if list_videos(folder)]
        if len(inner) > 1:
            raise UserError(f"data {root} has only one class ({folders[0].name}), with folders in it: "
                            f"the classes seem to be one level deeper, use {folders[0]}")  # fmt: skip


def _group(root: Path, path: Path) -> str:
    return lone_group(path.relative_to(root).as_posix())
