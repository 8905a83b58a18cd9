"""Find clips that are parts of others: trimmed, cropped, with borders added, or mirrored, and encoded again.

Three steps, each over what the one before left. Codes of single moments (``train.data.trace``) that nearly agree,
found by sorting, propose where two clips may be aligned; the codes of all moments they would share decide whether
that is worth a look; then the motion itself is correlated (``train.data.alignment``). So no two clips are compared
that do not share a moment, and two moments before one static camera share the background but no motion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.data.alignment import LEAST_MOVES, Match, best, distance_of
from train.data.backgrounds import Backgrounds
from train.data.likeness import DISTANCE
from train.data.moments import KINDS, SHIFTS, Moments
from train.data.spread import spread
from train.data.trace import LAG, STEP_S, Coded, Trace, code, motion_of

__all__ = ["Relation", "described", "relations"]

#: Bits of 64 by which two moments, and on average all shared ones, may differ to be looked at further.
_APART, _MEAN_APART = 16, 16.0
#: Share of each side that is cut off a clip's middle, whose codes find crops.
_MARGIN = 0.05

#: first, second, mirrored, shifts that are worth a look.
_Proposal = tuple[int, int, bool, list[int]]
_Job = tuple[Trace, Trace, list[int]]
#: Alignments that are not worth processes.
_FEW = 200


@dataclass(frozen=True, slots=True)
class Relation:
    """Two clips by their places, ``first`` < ``second``, that show the same for ``shown_s`` seconds.

    offset_s: when the second begins, in the first's time; below 0 the first begins in the second.
    """

    first: int
    second: int
    distance: float
    offset_s: float
    shown_s: float
    trimmed: bool = False
    cropped: bool = False
    bordered: bool = False
    mirrored: bool = False


def described(relation: Relation) -> str:
    """In words: ``trimmed: 1.4 s from +0.6 s of the first on, mirrored (distance 0.031)``."""
    begins, where = ("first", relation.offset_s) if relation.offset_s >= 0 else ("second", -relation.offset_s)
    kinds = [f"trimmed: {relation.shown_s:.1f} s from +{where:.2f} s of the {begins} on"] if relation.trimmed else []
    kinds += ["cropped"] if relation.cropped else []
    kinds += ["with other borders"] if relation.bordered else []
    how = ", ".join(kinds) or "look the same"
    return f"{how}{', mirrored' if relation.mirrored else ''} (distance {relation.distance:.3f})"


def relations(
    traces: Sequence[Trace | None], distance: float = DISTANCE, mirrored: bool = False, workers: int = 1,
    contents: Sequence[str] = (),
) -> list[Relation]:  # fmt: skip
    """Every two clips nearer than ``distance`` in some part, with parts of their mirror images too if asked.

    Clips of equal ``contents``, if given, are known to be the same and not compared with each other.
    """
    found: dict[tuple[int, int], Relation] = {}
    jobs = _Jobs(traces, list(_proposed(traces, mirrored, contents)))
    for job, match in zip(jobs.proposed, spread(_matched, jobs, "align", workers, _FEW), strict=True):
        if match is None:
            continue
        relation = _relation(job, traces, match)
        key = relation.first, relation.second
        if relation.distance < min(distance, found[key].distance if key in found else distance):
            found[key] = relation
    return [relation for _, relation in sorted(found.items())]


class _Jobs(Sequence[_Job]):
    """Two traces and their shifts for each proposal, made when asked for."""

    def __init__(self, traces: Sequence[Trace | None], proposed: list[_Proposal]) -> None:
        self.proposed, self._traces = proposed, traces

    def __len__(self) -> int:
        return len(self.proposed)

    def __getitem__(self, place: Any) -> Any:
        first, second, turned, shifts = self.proposed[place]
        one, two = self._traces[first], self._traces[second]
        assert one is not None and two is not None  # noqa: PT018
        return one, two.mirror if turned else two, shifts


def _matched(job: _Job) -> Match | None:
    return best(*job)


def _proposed(traces: Sequence[Trace | None], mirrored: bool, contents: Sequence[str] = ()) -> Iterator[_Proposal]:
    """Pairs that are worth aligning."""
    content = np.unique(list(contents) or np.arange(len(traces)), return_inverse=True)[1]
    moments, backs = _read(traces, mirrored)
    looked: dict[tuple[int, int, bool], list[tuple[float, int]]] = {}
    for keys in moments.agreed(_APART):
        pair, shift = np.divmod(keys, SHIFTS)
        left, right, kind = pair // KINDS // len(traces), pair // KINDS % len(traces), pair % KINDS
        shift -= SHIFTS // 2
        apart = moments.mean_apart(left, right, kind, shift)
        near = np.flatnonzero((apart < _MEAN_APART) & (content[left] != content[right]))
        near = near[backs.alike(left[near], right[near], kind[near] & 2, shift[near])]
        back = np.where(left > right, -1, 1)
        rows = zip(left[near].tolist(), right[near].tolist(), (kind[near] & 2).tolist(), apart[near].tolist(),
                   (shift * back)[near].tolist(), strict=True)  # fmt: skip
        for one, two, turned, bits, cells in rows:
            looked.setdefault((min(one, two), max(one, two), bool(turned)), []).append((bits, cells))
    for (first, second, turned), found in sorted(looked.items()):
        yield first, second, turned, list(dict.fromkeys(shift for _, shift in sorted(found)))[:3]


def _read(traces: Sequence[Trace | None], mirrored: bool) -> tuple[Moments, Backgrounds]:
    """The codes of each clip (0), of its middle (1), and of its mirror image (2); and the backgrounds."""
    rows: dict[int, list[Coded | None]] = {0: [], 1: [], 2: []}
    backs = Backgrounds()
    for trace in traces:
        motion = None if trace is None or len(trace) <= LAG else motion_of(trace.cells)
        rows[0].append(None if motion is None else code(motion))
        rows[1].append(None if motion is None else code(motion, _MARGIN))
        rows[2].append(None if motion is None or not mirrored else code(motion[..., ::-1]))
        backs.add(trace)
    return Moments(rows, LEAST_MOVES), backs


def _relation(proposal: _Proposal, traces: Sequence[Trace | None], match: Match) -> Relation:
    first, second, turned, _ = proposal
    one, two = traces[first], traces[second]
    assert one is not None and two is not None  # noqa: PT018
    return Relation(
        first, second, distance_of(match), match.shift * STEP_S, match.shared * STEP_S,
        min(match.shared / len(one), match.shared / len(two)) < 0.9, any(match.window),
        bool(np.abs(np.subtract(one.borders, two.borders)).max() > 0.03), turned,
    )  # fmt: skip
