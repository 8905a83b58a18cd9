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
import numpy.typing as npt

from toolkit.progress import track
from train.data.alignment import LEAST_MOVES, Match, best, distance_of
from train.data.likeness import DISTANCE
from train.data.neighbours import bits_apart, near_codes
from train.data.spread import spread
from train.data.trace import LAG, STEP_S, Coded, Trace, code, motion_of

__all__ = ["Relation", "described", "relations"]

#: Bits of 64 by which two moments, and on average all shared ones, may differ to be looked at further.
_APART, _MEAN_APART = 16, 16.0
#: Moments that must agree on how two clips are aligned.
_LEAST_VOTES = 3
#: Share of each side that is cut off a clip's middle, whose codes find crops.
_MARGIN = 0.05
_KINDS, _SHIFTS = 4, 1 << 21

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
    traces: Sequence[Trace | None], distance: float = DISTANCE, mirrored: bool = False, workers: int = 1
) -> list[Relation]:
    """Every two clips nearer than ``distance`` in some part, with parts of their mirror images too if asked."""
    found: dict[tuple[int, int], Relation] = {}
    jobs = _Jobs(traces, list(_proposed(traces, mirrored)))
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


def _proposed(traces: Sequence[Trace | None], mirrored: bool) -> Iterator[_Proposal]:
    """Pairs that are worth aligning."""
    variants = _variants(traces, mirrored)
    keys = _votes(variants, len(traces))
    looked: dict[tuple[int, int, bool], list[tuple[float, int]]] = {}
    for key in track(keys.tolist(), "compare"):
        pair, shift = divmod(key, _SHIFTS)
        (left, right), kind = divmod(pair // _KINDS, len(traces)), pair % _KINDS
        shift -= _SHIFTS // 2
        apart = _mean_apart(variants[kind & 1][left], variants[kind & 2][right], shift)
        if apart is not None and apart < _MEAN_APART:
            if left > right:
                left, right, shift = right, left, -shift
            looked.setdefault((left, right, bool(kind & 2)), []).append((apart, shift))
    for (first, second, turned), found in sorted(looked.items()):
        yield first, second, turned, list(dict.fromkeys(shift for _, shift in sorted(found)))[:3]


def _variants(traces: Sequence[Trace | None], mirrored: bool) -> dict[int, list[Coded | None]]:
    """The codes of each clip (0), of its middle (1), and of its mirror image (2)."""
    found: dict[int, list[Coded | None]] = {0: [], 1: [], 2: []}
    for trace in traces:
        motion = None if trace is None or len(trace) <= LAG else motion_of(trace.cells)
        found[0].append(None if motion is None else code(motion))
        found[1].append(None if motion is None else code(motion, _MARGIN))
        found[2].append(None if motion is None or not mirrored else code(motion[..., ::-1]))
    return found


def _votes(variants: dict[int, list[Coded | None]], clips: int) -> npt.NDArray[np.int64]:
    """Alignments that several moments propose: ((left * clips + right) * kinds + kind) * shifts + shift."""
    owners, cells, kinds, codes = [], [], [], []
    for variant, rows in variants.items():
        for place, row in enumerate(rows):
            moves = np.flatnonzero(row.moves) if row is not None else np.empty(0, np.int64)
            if row is not None and len(moves) >= LEAST_MOVES:
                owners.append(np.full(len(moves), place))
                kinds.append(np.full(len(moves), variant))
                cells.append(moves)
                codes.append(row.codes[moves])
    if not codes:
        return np.empty(0, np.int64)
    owner, cell, kind = np.concatenate(owners), np.concatenate(cells), np.concatenate(kinds)
    one, two = near_codes(np.concatenate(codes), owner, _APART)
    # The middle stands left, the mirror image right; two of the same sort by their places.
    swap = np.where(kind[one] == kind[two], owner[one] > owner[two], (kind[one] == 2) | (kind[two] == 1))
    one, two = np.where(swap, two, one), np.where(swap, one, two)
    fits = ((kind[one] == 0) | (kind[one] == 1)) & ((kind[two] == 0) | (kind[two] == 2))
    fits &= (kind[one] == 1) | (owner[one] < owner[two])
    one, two = one[fits], two[fits]
    pair = (owner[one] * clips + owner[two]) * _KINDS + kind[one] + kind[two]
    keys, votes = np.unique(pair * _SHIFTS + cell[one] - cell[two] + _SHIFTS // 2, return_counts=True)
    near = np.diff(keys) == 1  # the next shift of the same pair
    total = votes.copy()
    total[:-1] += votes[1:] * near
    total[1:] += votes[:-1] * near
    return np.asarray(keys[total >= _LEAST_VOTES], np.int64)


def _mean_apart(left: Coded | None, right: Coded | None, shift: int) -> float | None:
    """Bits by which shared moments differ on average; None if too few are shared."""
    if left is None or right is None:
        return None
    begin, end = max(0, -shift), min(len(right.codes), len(left.codes) - shift)
    moves = left.moves[begin + shift : end + shift] & right.moves[begin:end]
    if np.count_nonzero(moves) < LEAST_MOVES:
        return None
    return float(bits_apart(left.codes[begin + shift : end + shift], right.codes[begin:end])[moves].mean())


def _relation(proposal: _Proposal, traces: Sequence[Trace | None], match: Match) -> Relation:
    first, second, turned, _ = proposal
    one, two = traces[first], traces[second]
    assert one is not None and two is not None  # noqa: PT018
    return Relation(
        first, second, distance_of(match), match.shift * STEP_S, match.shared * STEP_S,
        min(match.shared / len(one), match.shared / len(two)) < 0.9, any(match.window),
        bool(np.abs(np.subtract(one.borders, two.borders)).max() > 0.03), turned,
    )  # fmt: skip
