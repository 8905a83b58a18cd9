"""Open a clip, whatever it is: a file, a part of one, a video in a tar shard, or frames in a folder or a tar."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.errors import MissingDependency, UserError
from toolkit.preprocess import Preprocess
from toolkit.video import Span, read_pictures
from train.data.clip import Clip
from train.data.formats.shards import read_member, read_members

if TYPE_CHECKING:
    from train.data.decode import Decoded, Timeline

__all__ = ["Opened", "open_clip", "read_clip", "read_stills"]


class Opened(Protocol):
    """An open clip; ``timeline`` is worth keeping for the next time, if there is one."""

    @property
    def timeline(self) -> "Timeline | None":
        """When its frames are shown."""
        ...

    def ticks(self, fps: float, span: Span = (None, None)) -> int:
        """How many pictures it has at ``fps``."""
        ...

    def pictures(
        self, ticks: Sequence[int], preprocess: Preprocess, span: Span = (None, None),
        out: npt.NDArray[np.uint8] | None = None,
    ) -> "Decoded":  # fmt: skip
        """The pictures at ``ticks``, which rise, in ``out`` if given; one after the last repeats it."""
        ...


class _Images:
    """Frames as picture files: one a tick, since they say no times."""

    timeline: "Timeline | None" = None

    def __init__(self, clip: Clip) -> None:
        self._clip = clip

    def ticks(self, fps: float, span: Span = (None, None)) -> int:
        return self._clip.pictures

    def pictures(
        self, ticks: Sequence[int], preprocess: Preprocess, span: Span = (None, None),
        out: npt.NDArray[np.uint8] | None = None,
    ) -> "Decoded":  # fmt: skip
        from train.data.decode import Decoded

        numbers = np.minimum(np.asarray(ticks, np.int64), self._clip.pictures - 1)
        chosen = sorted(set(numbers.tolist()))
        frames = dict(zip(chosen, read_stills(self._clip, chosen), strict=True))
        first = frames[int(numbers[0])]
        if any(frame.shape != first.shape for frame in frames.values()):
            raise UserError(f"pictures in {self._clip.name} are of different sizes: a clip needs one")
        pictures = {number: preprocess.picture(frame) for number, frame in frames.items()}
        found = [pictures[int(n)] for n in numbers]
        if out is not None:
            np.stack(found, out=out)
        return Decoded(found, numbers, (first.shape[0], first.shape[1]))


def read_stills(clip: Clip, numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """Frames of a clip of pictures by their rising numbers: uint8 BGR (H, W, 3).

    Raises:
        UserError: one is absent, damaged or no picture.
    """
    names = [str(clip.images[number]) if clip.images else clip.members[number].name for number in numbers]
    if clip.images:
        files = [path.read_bytes() if path.is_file() else b"" for path in (clip.images[number] for number in numbers)]
    else:
        files = read_members(clip.path, [clip.members[number] for number in numbers])
    return [_decoded(file, name) for file, name in zip(files, names, strict=True)]


def _decoded(file: bytes, name: str) -> npt.NDArray[np.uint8]:
    cv2 = opencv()
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) if file else None
    if image is None:
        raise UserError(f"picture {name} cannot be read: it is absent, damaged or no picture")
    return np.asarray(image, np.uint8)


@contextlib.contextmanager
def open_clip(clip: Clip, timeline: "Timeline | None" = None, device: str = "cpu") -> Iterator[Opened]:
    """Open a clip; its ``timeline``, if known from before, saves reading the whole file again.

    Raises:
        UserError: absent, damaged, or without pictures.
    """
    if clip.pictures:
        yield _Images(clip)
        return
    try:  # a board reads its own video files with OpenCV and has no PyAV
        from train.data.decode import open_video
    except ModuleNotFoundError as error:
        raise MissingDependency("av", "train") from error
    source = clip.path if clip.member is None else read_member(clip.path, clip.member)
    with open_video(source, clip.name, timeline, device) as video:
        yield video


def read_clip(clip: Clip, preprocess: Preprocess, limit: int | None = None) -> npt.NDArray[np.uint8]:
    """The clip's pictures, uint8 RGB (T, H, W, 3), at most ``limit``: by the board's decoder if it can.

    Raises:
        UserError: as :func:`open_clip`.
    """
    if clip.plain:
        return read_pictures(clip.path, preprocess, limit, clip.span)
    with open_clip(clip) as video:
        total = video.ticks(preprocess.fps, clip.span)
        return np.stack(video.pictures(range(min(total, limit or total)), preprocess, clip.span).pictures)
