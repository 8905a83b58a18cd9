"""Look at every clip before training: what cannot be read, is too short, is there twice, or leaks between splits.

Copies are found by two hashes: of the bytes of the clip, and of what its frames show (each scaled to 64x64 grey), which
a copy in another container shares. Re-encoded copies differ in both; they are near in what they look like
(``train.data.likeness``), and trimmed, cropped or mirrored ones in what moves in them (``train.data.relations``). Both
are a warning, since only eyes can tell for sure. Clips are decoded by processes side by side.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.video import Span
from train.data.clip import Clip
from train.data.decode import open_video
from train.data.formats.shards import read_member
from train.data.index import Dataset
from train.data.likeness import DISTANCE, Look, look_of, pairs
from train.data.opening import read_stills
from train.data.relations import Relation, described, relations
from train.data.spread import spread
from train.data.trace import GRID, Trace, Tracer

__all__ = ["ADVICE", "WARNINGS", "Problem", "Report", "check"]

#: What to do about each kind of problem.
ADVICE = {
    "broken": "re-encode or remove the file (training leaves it out)",
    "short": "remove it, or lower data.frames (training repeats its last picture)",
    "duplicate": "keep one of them",
    "label": "the same content has two labels: correct one, or join them by ';'",
    "near-duplicate": "look at them: if they are copies keep one, else lower --distance",
    "same-name": "if they are parts of one source, put them into one split or name it in a column 'group'",
    "leak": "put all of a group, and all copies, into one split",
}
#: Kinds that may be no mistake.
WARNINGS = frozenset({"near-duplicate", "same-name"})
_FEW = 16
#: Pictures of a folder that are decoded at a time.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one clip is: frames and pictures it has, its two hashes, its look and trace; or what is wrong."""

    frames: int = 0
    pictures: int = 0
    file: str = ""
    content: str = ""
    look: Look | None = None
    trace: Trace | None = None
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """kind: a key of ``ADVICE``; text: one line that names the clips; relation: how one is made of the other."""

    kind: str
    text: str
    clips: tuple[str, ...]
    relation: Relation | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """frames: decoded in all."""

    frames: int
    problems: tuple[Problem, ...]

    def of(self, kind: str) -> list[Problem]:
        """The problems of one kind."""
        return [problem for problem in self.problems if problem.kind == kind]

    @property
    def good(self) -> bool:
        """Whether there is nothing, or only warnings."""
        return all(problem.kind in WARNINGS for problem in self.problems)


def check(
    data: Dataset, fps: float, frames: int, workers: int | None = None, distance: float = DISTANCE,
    mirrored: bool = False,
) -> Report:  # fmt: skip
    """Decode every clip; one with fewer than ``frames`` pictures at ``fps`` is too short.

    Clips nearer than ``distance`` are taken for copies (0: none is); with ``mirrored`` mirror images too.

    Raises:
        UserError: a worker died.
    """
    workers = workers or os.cpu_count() or 1
    seen: list[_Seen] = list(spread(partial(_examine, fps=fps, looks=distance > 0), data.clips, "check", workers, _FEW))
    found = list(zip(data.clips, seen, strict=True))
    problems = [Problem("broken", one.wrong, (clip.name,)) for clip, one in found if one.wrong]
    for clip, one in found:
        if not one.wrong and one.pictures < frames:
            what = f"{clip.name} has {one.pictures} of {frames} pictures at {fps:g} a second"
            problems.append(Problem("short", what, (clip.name,)))
    good = [(clip, one) for clip, one in found if not one.wrong]
    problems += _copies(good)
    problems += _near_copies(good, distance, mirrored, workers)
    problems += _leaking_groups(data.clips)
    problems += _leaking_names(good)
    return Report(sum(one.frames for one in seen), tuple(problems))


def _examine(clip: Clip, fps: float, looks: bool) -> _Seen:
    try:
        return _stills(clip, fps, looks) if clip.pictures else _video(clip, fps, looks)
    except UserError as error:
        return _Seen(wrong=str(error))
    except OSError as error:
        return _Seen(wrong=f"video {clip.name} cannot be read ({error.strerror}): check its permissions")


def _video(clip: Clip, fps: float, looks: bool) -> _Seen:
    if clip.member is None:
        if clip.path.is_file() and clip.path.stat().st_size == 0:
            raise UserError(f"video {clip.name} holds nothing (0 bytes): copy it again or remove it")
        if clip.path.is_file():
            clip.path.open("rb").close()  # forbidden files are told apart from damaged ones
    source = clip.path if clip.member is None else read_member(clip.path, clip.member)
    hashed, shown = hashlib.sha256(), _Shown()
    scaler = av.video.reformatter.VideoReformatter()
    with open_video(source, clip.name) as video:
        pictures = video.ticks(fps, clip.span)
        for stamp_s, frame in video.between(clip.span):
            small = scaler.reformat(frame, width=GRID, height=GRID, format="gray", threads=1).to_ndarray()
            turns = round(frame.rotation / 90) % 4
            hashed.update(small.tobytes())
            hashed.update(bytes([turns]))
            shown.add(np.rot90(small, turns) if looks else None, stamp_s)
    if not shown.times_s:
        raise UserError(f"video {clip.name} holds no frame: it is empty or truncated; re-encode or remove it")
    content = hashed.hexdigest()
    return _Seen(len(shown.times_s), pictures, _file_hash(source, clip.span), content, *shown.done())


def _stills(clip: Clip, fps: float, looks: bool) -> _Seen:
    """Frames as picture files, one a tick: the hash is of their pixels."""
    cv2, hashed, shown = opencv(), hashlib.sha256(), _Shown()
    for start in range(0, clip.pictures, _AT_ONCE):
        for frame in read_stills(clip, range(start, min(start + _AT_ONCE, clip.pictures))):
            hashed.update(frame.tobytes())
            small = cv2.resize(frame, (GRID, GRID), interpolation=cv2.INTER_AREA) if looks else None
            grey = None if small is None else np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
            shown.add(grey, len(shown.times_s) / fps)
    content, count = hashed.hexdigest(), len(shown.times_s)
    return _Seen(count, count, content, content, *shown.done())


class _Shown:
    """What was shown when: makes the look and the trace of a clip from its frames."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._small: list[npt.NDArray[np.uint8]] = []
        self._tracer = Tracer()

    def add(self, frame: npt.NDArray[np.uint8] | None, time_s: float) -> None:
        """A frame of 64x64 grey; without it, it is only counted."""
        self.times_s.append(time_s)
        if frame is not None:
            half = frame.reshape(GRID // 2, 2, GRID // 2, 2).mean((1, 3), dtype=np.float32)
            self._small.append(np.rint(half).astype(np.uint8))
            self._tracer.add(frame, time_s)

    def done(self) -> tuple[Look | None, Trace | None]:
        """Neither without frames."""
        return (look_of(np.stack(self._small), self.times_s), self._tracer.done()) if self._small else (None, None)


def _file_hash(source: Any, span: Span) -> str:
    if isinstance(source, bytes):
        digest = hashlib.sha256(source).hexdigest()
    else:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest} {span}"


def _copies(good: Sequence[tuple[Clip, _Seen]]) -> Iterator[Problem]:
    """Clips of the same content: a leak if they are in two splits, else a duplicate; and their labels must agree."""
    for _, found in groupby(sorted(good, key=lambda pair: pair[1].content), key=lambda pair: pair[1].content):
        pairs = list(found)
        if len(pairs) == 1:
            continue
        clips = [clip for clip, _ in pairs]
        names = tuple(clip.name for clip in clips)
        same = "the same bytes" if len({one.file for _, one in pairs}) == 1 else "the same frames"
        splits = sorted({clip.split for clip in clips})
        where = f" in {' and '.join(splits)}" if len(splits) > 1 else ""
        kind = "leak" if len(splits) > 1 else "duplicate"
        yield Problem(kind, f"{' = '.join(names)}: {same}{where}", names)
        labels = sorted({clip.label for clip in clips})
        if len(labels) > 1:
            yield Problem("label", f"{' = '.join(names)}: {same}, labels {' and '.join(labels)}", names)


def _near_copies(
    good: Sequence[tuple[Clip, _Seen]], distance: float, mirrored: bool, workers: int
) -> Iterator[Problem]:
    """Clips that look the same, or partly, though no frame of them is: a leak if in two splits, else a warning."""
    told = set()
    for pair in pairs([one.look for _, one in good], distance, mirrored):
        told.add((pair.first, pair.second))
        how = "look the same" + (" mirrored" if pair.mirrored else "") + f" (distance {pair.distance:.3f})"
        yield from _near_copy(good[pair.first], good[pair.second], how)
    if distance <= 0:
        return
    for relation in relations([one.trace for _, one in good], distance, mirrored, workers):
        first, second = good[relation.first], good[relation.second]
        if (relation.first, relation.second) in told or _allowed(first[0], second[0]):
            continue
        yield from _near_copy(first, second, described(relation), relation)


def _allowed(one: Clip, two: Clip) -> bool:
    """Parts of one file may overlap as they please within a split."""
    return one.split == two.split and not one.pictures and (one.path, one.member) == (two.path, two.member)


def _near_copy(
    first: tuple[Clip, _Seen], second: tuple[Clip, _Seen], how: str, relation: Relation | None = None
) -> Iterator[Problem]:
    (one, _), (two, _) = first, second
    if first[1].content == second[1].content:
        return  # told before
    names, what = (
        (one.name, two.name),
        f"{one.name} ~ {two.name}: {how}"
        + ("" if one.label == two.label else f", labels {' and '.join(sorted((one.label, two.label)))}"),
    )
    if one.split != two.split:
        what = f"{what} in {' and '.join(sorted((one.split, two.split)))}"
    yield Problem("near-duplicate" if one.split == two.split else "leak", what, names, relation)


def _leaking_groups(clips: Sequence[Clip]) -> Iterator[Problem]:
    places: dict[str, dict[str, str]] = {}
    for clip in clips:
        if not clip.lone:
            places.setdefault(clip.group, {}).setdefault(clip.split, clip.name)
    for group, splits in sorted(places.items()):
        if len(splits) > 1:
            yield Problem("leak", f"group {group} is in {' and '.join(sorted(splits))}", tuple(splits.values()))


def _leaking_names(good: Sequence[tuple[Clip, _Seen]]) -> Iterator[Problem]:
    """Files of one class and name in two splits: a leak if they show the same, else one warning for all."""
    named: dict[tuple[str, str], list[tuple[Clip, _Seen]]] = {}
    for clip, one in good:
        if clip.lone:
            named.setdefault((PurePosixPath(clip.group).name, clip.label), []).append((clip, one))
    apart = []
    for (name, _), found in sorted(named.items()):
        places = [{clip.split for clip, one in found if one.content == content} for content in _contents(found)]
        if straddling := {split for place in places if len(place) > 1 for split in place}:
            names = tuple(clip.name for clip, _ in found)
            yield Problem("leak", f"group {name} is in {' and '.join(sorted(straddling))}", names)
        elif len({clip.split for clip, _ in found}) > 1:
            apart.append(name)
    if shared := sorted(set(apart)):
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        what = f"names in two splits, whose videos of one class differ: {shown} ({len(shared)} in all)"
        yield Problem("same-name", what, ())


def _contents(found: Sequence[tuple[Clip, _Seen]]) -> set[str]:
    return {one.content for _, one in found}
