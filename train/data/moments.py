"""The codes of all moments of all clips, and at which alignments of two clips several of them nearly agree.

A row is a clip as it is (kind 0), its middle (1), or its mirror image (2); rows are laid one behind the other, so that
millions of moments are a few arrays. An alignment of two rows is one number: ``((left * clips + right) * KINDS +
kind) * SHIFTS + shift + SHIFTS // 2``, with ``kind`` 1 if the left one is a middle, plus 2 if the right one is a mirror
image. Shapes: M moments, n alignments.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from toolkit.progress import track
from train.data.neighbours import bits_apart, near_codes
from train.data.trace import Coded

__all__ = ["KINDS", "SHIFTS", "Moments"]

KINDS, SHIFTS = 4, 1 << 21
#: Moments that must agree on how two clips are aligned.
_LEAST_VOTES = 3
#: Moments that are compared in one go.
_AT_ONCE = 1 << 20

Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]


class Moments:
    """rows: of each kind, each clip's codes; rows with fewer than ``least`` moving moments propose nothing."""

    def __init__(self, rows: Mapping[int, Sequence[Coded | None]], least: int) -> None:
        self._least, self._clips = least, len(rows[0])
        flat = [row for kind in sorted(rows) for row in rows[kind]]
        self._length = np.asarray([0 if row is None else len(row.codes) for row in flat], np.int64)
        self._begin = np.cumsum(self._length) - self._length
        known = [row for row in flat if row is not None]
        self._codes = np.concatenate([row.codes for row in known]) if known else np.empty(0, np.uint64)
        self._moves = np.concatenate([row.moves for row in known]) if known else np.empty(0, np.bool_)

    def agreed(self, apart: int) -> Iterator[Places]:
        """Alignments that several moments, which differ by at most ``apart`` bits, propose; each once, in parts."""
        row = np.repeat(np.arange(len(self._length), dtype=np.int32), self._length)
        enough = np.bincount(row[self._moves], minlength=len(self._length)) >= self._least
        used = np.flatnonzero(self._moves & enough[row])
        row, cell = row[used], (used - self._begin[row[used]]).astype(np.int32)
        codes, clip = self._codes[used], row % np.int32(max(self._clips, 1))
        kind = (row // np.int32(max(self._clips, 1))).astype(np.int8)
        del row, used, enough
        for one, two in track(near_codes(codes, clip, apart), "compare"):
            yield self._counted(kind, clip, cell, one, two)

    def _counted(
        self, kind: npt.NDArray[np.int8], clip: Numbers, cell: Numbers, one: Places, two: Places
    ) -> Places:  # fmt: skip
        """The alignments that enough of these pairs of moments propose."""
        # Codes come in the order of their kinds and clips. The middle stands left, the mirror image right.
        swap = (kind[one] == 0) & (kind[two] == 1)
        one, two = np.where(swap, two, one), np.where(swap, one, two)
        fits = (kind[one] != 2) & (kind[two] != 1) & ((kind[one] == 1) | (clip[one] < clip[two]))
        one, two = one[fits], two[fits]
        pair = (clip[one].astype(np.int64) * self._clips + clip[two]) * KINDS + kind[one] + kind[two]
        keys = pair * SHIFTS + (cell[one] - cell[two] + SHIFTS // 2)
        keys.sort()
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
        keys, votes = keys[first], np.diff(np.append(first, len(keys)))
        near = np.diff(keys) == 1  # the next shift of the same pair
        total = votes.copy()
        total[:-1] += votes[1:] * near
        total[1:] += votes[:-1] * near
        return np.asarray(keys[total >= _LEAST_VOTES], np.int64)

    def mean_apart(self, left: Places, right: Places, kind: Places, shift: Places) -> npt.NDArray[np.float64]:
        """Bits by which the moments shared by aligned clips differ on average (n,); 64 if too few are shared."""
        left, right = left + self._clips * (kind & 1), right + self._clips * (kind & 2)
        begin = np.maximum(0, -shift)
        count = np.maximum(0, np.minimum(self._length[right], self._length[left] - shift) - begin)
        found = np.full(len(left), 64.0)
        for part in _parts(count):
            lengths = count[part]
            step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            ours = np.repeat(self._begin[left[part]] + begin[part] + shift[part], lengths) + step
            theirs = np.repeat(self._begin[right[part]] + begin[part], lengths) + step
            both = self._moves[ours] & self._moves[theirs]
            apart = bits_apart(self._codes[ours], self._codes[theirs]) * both
            owner = np.repeat(np.arange(len(lengths)), lengths)
            moves = np.bincount(owner, both, len(lengths))
            bits = np.bincount(owner, apart, len(lengths))
            found[part] = np.where(moves >= self._least, bits / np.maximum(moves, 1), 64.0)
        return found


def _parts(count: Places) -> Iterator[slice]:
    """Alignments of about ``_AT_ONCE`` shared moments."""
    part = np.cumsum(count) // _AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(count)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges) if a < b)
