"""One labelled clip: a video file, a part of one, a video inside a tar shard, or frames in a folder or a tar.

Everything that a list file can say about it travels here; nothing is opened or decoded yet.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toolkit.splits import SPLITS
from toolkit.video import Span

__all__ = ["SPLITS", "Box", "Clip", "Member", "lone_group", "split_name"]

_OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "validate": "val", "dev": "val",
                "testing": "test"}  # fmt: skip


def split_name(text: str) -> str:
    """The split that people also call ``text``; an unknown word comes back as it is."""
    word = text.strip().lower()
    return _OTHER_NAMES.get(word, word if word in SPLITS else text.strip())


#: Begins the group of a clip of which only its place is known: the same name elsewhere need not be the same video.
_LONE = "./"


def lone_group(*place: str) -> str:
    """The group of a clip about which no list says where it comes from: its own place without the ending."""
    whole = str(PurePosixPath(*place))
    return _LONE + whole.removesuffix(PurePosixPath(whole).suffix).lstrip("/")


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar: its name there and the bytes it covers. ``url`` is set when the tar is not local."""

    name: str
    offset: int
    size: int
    url: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """An object in frame number ``frame`` (from 0): x1 y1 x2 y2 in pixels of the video."""

    frame: int
    label: str
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Clip:
    """label: one, several joined by ``;``, or none (""). group: what must not straddle two splits.

    span: seconds of the file that are the clip. meta: metadata columns. images: frames of a clip that is no video
    file, ``path`` being their folder; members: frames that lie in the tar at ``path``. ``annotated`` frames without a
    box are known to hold none.
    """

    path: Path
    label: str
    split: str
    group: str
    span: Span = (None, None)
    meta: tuple[tuple[str, str], ...] = ()
    member: Member | None = None
    images: tuple[Path, ...] = ()
    members: tuple[Member, ...] = ()
    boxes: tuple[Box, ...] = ()
    annotated: tuple[int, ...] = ()

    @property
    def lone(self) -> bool:
        """Whether nothing is known about its group: :func:`lone_group`."""
        return self.group.startswith(_LONE)

    @property
    def labels(self) -> tuple[str, ...]:
        """Each label."""
        return tuple(part.strip() for part in self.label.split(";") if part.strip())

    @property
    def name(self) -> str:
        """What people are told when something is wrong with it."""
        inside = str(self.path)
        if self.member is not None:
            inside = f"{self.member.url or self.path}:{self.member.name}"
        elif self.members:
            inside = f"{self.members[0].url or self.path}:{self.members[0].name.partition('.')[0]}"
        start_s, end_s = self.span
        if self.span == (None, None):
            return inside
        return f"{inside} [{start_s or 0:g}-{'end' if end_s is None else f'{end_s:g} s'}]"

    def __str__(self) -> str:
        return self.name

    @property
    def plain(self) -> bool:
        """Whether it is a video file of its own that OpenCV can open."""
        return self.member is None and not self.pictures

    @property
    def pictures(self) -> int:
        """How many picture files it is made of; 0 if it is a video."""
        return len(self.images) or len(self.members)
