"""Look at every clip before training: what cannot be read, is too short, is there twice, or leaks between splits.

Copies are found by two hashes: of the bytes of the clip, and of what its frames show (each scaled to 64x64 grey), which
a copy in another container shares. Re-encoded copies differ in both; they are near in what they look like
(``train.data.likeness``), and trimmed, cropped or mirrored ones in what moves in them (``train.data.relations``). Both
are a warning, since only eyes can tell for sure. Clips are decoded by processes side by side.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from toolkit.progress import note
from train.data.clip import Clip
from train.data.examine import Seen, examine
from train.data.fingerprints import Fingerprints, fingerprint_key
from train.data.index import Dataset
from train.data.likeness import DISTANCE, pairs
from train.data.relations import Relation, described, relations
from train.data.spread import spread
from train.data.trace import Trace

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
#: More than this take long enough to be interrupted.
_MANY = 1000


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
    mirrored: bool = False, cache: Path | None = None,
) -> Report:  # fmt: skip
    """Decode every clip; one with fewer than ``frames`` pictures at ``fps`` is too short.

    Clips nearer than ``distance`` are taken for copies (0: none is); with ``mirrored`` mirror images too. What was seen
    is kept in the folder ``cache``: an interrupted check goes on there, and a later one decodes only what is new.

    Raises:
        UserError: a worker died, or the cache cannot be written or read.
    """
    workers = workers or os.cpu_count() or 1
    with Fingerprints.open(cache) as known:
        keys = [fingerprint_key(clip, fps, distance > 0) for clip in data.clips]
        seen = _seen(data.clips, keys, known, partial(examine, fps=fps, looks=distance > 0), workers)
        found = list(zip(data.clips, seen, strict=True))
        problems = [Problem("broken", one.wrong, (clip.name,)) for clip, one in found if one.wrong]
        for clip, one in found:
            if not one.wrong and one.pictures < frames:
                what = f"{clip.name} has {one.pictures} of {frames} pictures at {fps:g} a second"
                problems.append(Problem("short", what, (clip.name,)))
        good = [(clip, one) for clip, one in found if not one.wrong]
        problems += _copies(good)
        traces = known.traces([key for key, one in zip(keys, seen, strict=True) if not one.wrong])
        problems += _near_copies(good, traces, distance, mirrored, workers)
        problems += _leaking_groups(data.clips)
        problems += _leaking_names(good)
    return Report(sum(one.frames for one in seen), tuple(problems))


def _seen(
    clips: Sequence[Clip], keys: Sequence[str], known: Fingerprints, look: Callable[[Clip], Seen], workers: int
) -> list[Seen]:
    """What each clip is, by its key; only unknown ones are decoded, and broken ones are, each time."""
    found = {key: one for key in keys if (one := known.get(key)) is not None}
    todo = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in found}
    if found and len(found) < len(set(keys)):
        note(f"{len(found)} clips are known, {len(todo)} are new")
    if len(todo) > _MANY and not known.kept:
        note(f"{len(todo)} clips: with --cache FOLDER an interrupted check would go on")
    for key, one in zip(todo, spread(look, list(todo.values()), "check", workers, _FEW), strict=True):
        found[key] = known.put(key, one)
    return [found[key] for key in keys]


def _copies(good: Sequence[tuple[Clip, Seen]]) -> Iterator[Problem]:
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
    good: Sequence[tuple[Clip, Seen]], traces: Sequence[Trace | None], distance: float, mirrored: bool, workers: int
) -> Iterator[Problem]:
    """Clips that look the same, or partly, though no frame of them is: a leak if in two splits, else a warning."""
    told = set()
    for pair in pairs([one.look for _, one in good], distance, mirrored):
        told.add((pair.first, pair.second))
        how = "look the same" + (" mirrored" if pair.mirrored else "") + f" (distance {pair.distance:.3f})"
        yield from _near_copy(good[pair.first], good[pair.second], how)
    if distance <= 0:
        return
    for relation in relations(traces, distance, mirrored, workers, [one.content for _, one in good]):
        first, second = good[relation.first], good[relation.second]
        if (relation.first, relation.second) in told or _allowed(first[0], second[0]):
            continue
        yield from _near_copy(first, second, described(relation), relation)


def _allowed(one: Clip, two: Clip) -> bool:
    """Parts of one file may overlap as they please within a split."""
    return one.split == two.split and not one.pictures and (one.path, one.member) == (two.path, two.member)


def _near_copy(
    first: tuple[Clip, Seen], second: tuple[Clip, Seen], how: str, relation: Relation | None = None
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


def _leaking_names(good: Sequence[tuple[Clip, Seen]]) -> Iterator[Problem]:
    """Files of one class and name in two splits: a leak if they show the same, else one warning for all."""
    named: dict[tuple[str, str], list[tuple[Clip, Seen]]] = {}
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


def _contents(found: Sequence[tuple[Clip, Seen]]) -> set[str]:
    return {one.content for _, one in found}
