"""Whether two clips can have one background at all: asked of very many pairs at once, before any is aligned.

Aligned clips are copies only if their mean pictures over the time they share correlate by 0.94, or those of a window
and a whole picture by 0.98 (``train.data.alignment``). So the same coarse pictures must be somewhat alike: of the
shared time in 4x4 parts, which are kept of every cell, or of the whole clips in one of the windows from which the
search for windows starts. Shapes: K cells, n pairs, W windows, S side.
"""

import functools

import numpy as np
import numpy.typing as npt

from train.data.alignment import LEAST_START, STARTS
from train.data.trace import SIDE, Trace, scaling

__all__ = ["Backgrounds"]

#: Of the shared time; copies reach 0.94 in finer pictures.
_LEAST_ALIKE = 0.8
_COARSE, _PARTS = 16, 4
_AT_ONCE = 4096
#: Of longer shared times the beginning tells: so many sums of 255 fit into 16 bits.
_MOST_CELLS = 257

Float = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Sums = npt.NDArray[np.uint16]


class Backgrounds:
    """The mean picture of each clip, 512 bytes, and the sums of its cells up to each, 32 bytes a cell."""

    def __init__(self) -> None:
        self._stills: list[npt.NDArray[np.float16]] = []
        self._sums: list[Sums] = []

    def add(self, trace: Trace | None) -> None:
        """The next clip."""
        if trace is None:
            self._stills.append(np.zeros((_COARSE, _COARSE), np.float16))
            self._sums.append(np.zeros((1, _PARTS * _PARTS), np.uint16))
            return
        self._stills.append(_pooled(trace.still, _COARSE).astype(np.float16))
        cells = _pooled(trace.moving, _PARTS) * np.float32(trace.scale) + _pooled(trace.still, _PARTS)
        flat = np.rint(cells.clip(0, 255)).astype(np.uint16).reshape(len(cells), -1)
        # They run over; differences of up to ``_MOST_CELLS`` cells are right all the same.
        self._sums.append(np.concatenate([np.zeros_like(flat[:1]), np.cumsum(flat, 0, np.uint16)]))

    def alike(self, left: Places, right: Places, mirrored: Places, shift: Places) -> npt.NDArray[np.bool_]:
        """Whether pairs may be copies if the right one begins ``shift`` cells into the left one (n,).

        Where ``mirrored`` is not 0 the right one's mirror image is meant.
        """
        shared, window = self.likeness(left, right, mirrored, shift)
        return (shared >= _LEAST_ALIKE) | (window >= LEAST_START)

    def likeness(self, left: Places, right: Places, mirrored: Places, shift: Places) -> tuple[Float, Float]:
        """The correlations of the shared time's pictures, and of the best window of one with the other (n,), (n,)."""
        found = np.empty((2, len(left)), np.float32)
        for begin in range(0, len(left), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            one, two, turned = left[part], right[part], mirrored[part] != 0
            found[0, part] = self._shared(one, two, turned, shift[part])
            found[1, part] = self._windows(one, two, turned)
        return found[0], found[1]

    @functools.cached_property
    def _joined(self) -> tuple[Sums, Places, Places]:
        """The sums of all clips, where each clip's begin, and how many cells it has."""
        cells = np.asarray([len(sums) - 1 for sums in self._sums], np.int64)
        return np.concatenate(self._sums), np.cumsum(cells + 1) - cells - 1, cells

    def _shared(self, left: Places, right: Places, turned: npt.NDArray[np.bool_], shift: Places) -> Float:
        sums, begins, cells = self._joined
        begin = np.maximum(0, -shift)
        count = np.clip(np.minimum(cells[right], cells[left] - shift) - begin, 0, _MOST_CELLS)
        pictures = []
        for first in (begins[left] + begin + shift, begins[right] + begin):
            first = np.where(count > 0, first, 0)
            total = (sums[first + count] - sums[first]).astype(np.float32)
            pictures.append((total / np.maximum(count, 1)[:, None]).reshape(-1, _PARTS, _PARTS))
        ours, theirs = pictures
        theirs = np.where(turned[:, None, None], theirs[..., ::-1], theirs)
        return np.asarray(np.einsum("ni,ni->n", _centred(ours), _centred(theirs)), np.float32)

    def _windows(self, left: Places, right: Places, turned: npt.NDArray[np.bool_]) -> Float:
        clips = len(self._stills)
        places, inverse = np.unique(np.concatenate([left, right + clips * turned]), return_inverse=True)
        ours, theirs = np.split(inverse, 2)
        pictures = np.stack([self._picture(place, clips) for place in places.tolist()])
        whole, best = _centred(pictures), np.full(len(left), -1, np.float32)
        for top, bottom, first, last in STARTS:
            rows, columns = (scaling(a * _COARSE / 100, _COARSE - b * _COARSE / 100, _COARSE, _COARSE)
                             for a, b in ((top, bottom), (first, last)))  # fmt: skip
            cut = _centred(np.asarray(rows @ pictures @ columns.T, np.float32))
            for one, two in ((ours, theirs), (theirs, ours)):
                best = np.maximum(best, np.einsum("ni,ni->n", cut[one], whole[two]))
        return best

    def _picture(self, place: int, clips: int) -> Float:
        """Of a clip, or of the mirror image of one that is numbered on from the last."""
        found = self._stills[place % clips].astype(np.float32)
        return found[:, ::-1] if place >= clips else found


def _pooled(pictures: npt.NDArray[np.float32] | npt.NDArray[np.int8], side: int) -> Float:
    """Mean over squares: (..., S, S) to (..., side, side)."""
    by = SIDE // side
    squares = pictures.reshape(*pictures.shape[:-2], side, by, side, by)
    return np.asarray(squares.mean((-3, -1), dtype=np.float32), np.float32)


def _centred(pictures: Float) -> Float:
    """Of unit length around their mean: (n, S, S) to (n, S * S)."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)
