"""Look at every clip before training: what cannot be read, is too short, is there twice, or leaks between splits.

Copies are found by two hashes: of the bytes of the clip, and of what its frames show (each scaled to 32x32 grey), which
a copy in another container shares. Re-encoded copies differ in both; they are near in what they look like
(``train.data.likeness``), and are a warning, since only eyes can tell for sure. Clips are decoded by processes side by
side.
"""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import av
import numpy as np

from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.progress import track
from toolkit.video import Span
from train.data.clip import Clip
from train.data.decode import open_video
from train.data.formats.shards import read_member
from train.data.index import Dataset
from train.data.likeness import DISTANCE, SIDE, Look, look_of, pairs
from train.data.opening import read_stills

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
    """What one clip is: frames and pictures it has, its two hashes, its look; or what is wrong with it."""

    frames: int = 0
    pictures: int = 0
    file: str = ""
    content: str = ""
    look: Look | None = None
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """kind: a key of ``ADVICE``; text: one line that names the clips."""

    kind: str
    text: str
    clips: tuple[str, ...]


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
    seen = list(_examined(data.clips, fps, distance > 0, workers or os.cpu_count() or 1))
    found = list(zip(data.clips, seen, strict=True))
    problems = [Problem("broken", one.wrong, (clip.name,)) for clip, one in found if one.wrong]
    for clip, one in found:
        if not one.wrong and one.pictures < frames:
            what = f"{clip.name} has {one.pictures} of {frames} pictures at {fps:g} a second"
            problems.append(Problem("short", what, (clip.name,)))
    good = [(clip, one) for clip, one in found if not one.wrong]
    problems += _copies(good)
    problems += _near_copies(good, distance, mirrored)
    problems += _leaking_groups(data.clips)
    problems += _leaking_names(good)
    return Report(sum(one.frames for one in seen), tuple(problems))


def _examined(clips: Sequence[Clip], fps: float, looks: bool, workers: int) -> Iterator[_Seen]:
    look = partial(_examine, fps=fps, looks=looks)
    if workers == 1 or len(clips) < _FEW:
        yield from track(map(look, clips), "check", len(clips))
        return
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            chunk = max(1, min(16, len(clips) // (4 * workers)))
            yield from track(pool.map(look, clips, chunksize=chunk), "check", len(clips))
        except BrokenProcessPool as error:
            raise UserError("a worker died while decoding: run with --workers 1 to see at which video") from error


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
    hashed, seen, times_s = hashlib.sha256(), [], []
    scaler = av.video.reformatter.VideoReformatter()
    with open_video(source, clip.name) as video:
        pictures = video.ticks(fps, clip.span)
        for stamp_s, frame in video.between(clip.span):
            small = scaler.reformat(frame, width=SIDE, height=SIDE, format="gray", threads=1).to_ndarray()
            turns = round(frame.rotation / 90) % 4
            hashed.update(small.tobytes())
            hashed.update(bytes([turns]))
            times_s.append(stamp_s)
            if looks:
                seen.append(np.rot90(small, turns))
    if not times_s:
        raise UserError(f"video {clip.name} holds no frame: it is empty or truncated; re-encode or remove it")
    look = look_of(np.stack(seen), times_s) if looks else None
    return _Seen(len(times_s), pictures, _file_hash(source, clip.span), hashed.hexdigest(), look)


def _stills(clip: Clip, fps: float, looks: bool) -> _Seen:
    """Frames as picture files: the hash is of their pixels."""
    cv2, hashed, seen = opencv(), hashlib.sha256(), []
    for start in range(0, clip.pictures, _AT_ONCE):
        for frame in read_stills(clip, range(start, min(start + _AT_ONCE, clip.pictures))):
            hashed.update(frame.tobytes())
            small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            seen.append(np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8))
    look = look_of(np.stack(seen), range(len(seen))) if looks else None
    return _Seen(len(seen), len(seen), hashed.hexdigest(), hashed.hexdigest(), look)


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


def _near_copies(good: Sequence[tuple[Clip, _Seen]], distance: float, mirrored: bool) -> Iterator[Problem]:
    """Clips that look the same though no frame of them is: a leak if they are in two splits, else a warning."""
    for pair in pairs([one.look for _, one in good], distance, mirrored):
        (one, first), (two, second) = good[pair.first], good[pair.second]
        if first.content == second.content:
            continue
        how = "look the same" + (" mirrored" if pair.mirrored else "") + f" (distance {pair.distance:.3f})"
        what = f"{one.name} ~ {two.name}: {how}" + (
            "" if one.label == two.label else f", labels {' and '.join(sorted((one.label, two.label)))}"
        )
        if one.split != two.split:
            where = " and ".join(sorted((one.split, two.split)))
            yield Problem("leak", f"{what} in {where}", (one.name, two.name))
        else:
            yield Problem("near-duplicate", what, (one.name, two.name))


def _leaking_groups(clips: Sequence[Clip]) -> Iterator[Problem]:
    places: dict[str, dict[str, str]] = {}
    for clip in clips:
        if not clip.lone:
            places.setdefault(clip.group, {}).setdefault(clip.split, clip.name)
    for group, splits in sorted(places.items()):
        if len(splits) > 1:
            yield Problem("leak", f"group {group} is in {' and '.join(sorted(splits))}", tuple(splits.values()))


def _leaking_names(good: Sequence[tuple[Clip, _Seen]]) -> Iterator[Problem]:
    """Files of one name in two splits: a leak if they show the same, else (000.mp4 in each folder) one warning."""
    named: dict[str, list[tuple[Clip, _Seen]]] = {}
    for clip, one in good:
        if clip.lone:
            named.setdefault(PurePosixPath(clip.group).name, []).append((clip, one))
    apart = []
    for name, found in sorted(named.items()):
        places = [{clip.split for clip, one in found if one.content == content} for content in _contents(found)]
        if straddling := {split for place in places if len(place) > 1 for split in place}:
            names = tuple(clip.name for clip, _ in found)
            yield Problem("leak", f"group {name} is in {' and '.join(sorted(straddling))}", names)
        elif len({clip.split for clip, _ in found}) > 1:
            apart.append(name)
    if apart:
        shown = ", ".join(apart[:3]) + (", ..." if len(apart) > 3 else "")
        yield Problem("same-name", f"{len(apart)} file names are in two splits, their videos differ: {shown}", ())


def _contents(found: Sequence[tuple[Clip, _Seen]]) -> set[str]:
    return {one.content for _, one in found}
