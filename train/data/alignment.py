"""How two clips agree if one is shifted in time, or is a window of the other's picture.

The motion (``train.data.trace``) of the time they share is correlated, at shifts of half a cell. Where whole pictures
do not agree, the window of one mean picture that is most like the other is sought first: it does not depend on time.
Both are then smoothed, since scaling a window changes the finest detail.
Shapes: K cells, S side.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from train.data.likeness import DISTANCE
from train.data.trace import LAG, LEAST_MOTION, SIDE, Trace, motion_of, scaling

__all__ = ["LEAST_MOVES", "LEAST_START", "STARTS", "Match", "best", "distance_of"]

#: Cells that must be shared, by whole pictures and by windows, and of them those in which something moves.
_LEAST_SHARED, _LEAST_SHARED_CROPPED, LEAST_MOVES = 7, 10, 5
#: Percent of each side that a crop may have lost.
_MOST_CROPPED = 15
_WHOLE = (0, 0, 0, 0)
#: Windows from which the search starts: crops at the centre and towards each corner.
STARTS = ((4, 4, 4, 4), (8, 0, 8, 0), (8, 0, 0, 8), (0, 8, 8, 0), (0, 8, 0, 8))
#: How alike the best of these must be to begin with: copies were from 0.77 on, most strangers are below.
LEAST_START = 0.5
#: How alike the backgrounds must be, of whole pictures and of windows, which are made to be alike.
_LEAST_STILL, _LEAST_STILL_CROPPED = 0.94, 0.98
#: So much more the motion of windows must agree than that of whole pictures.
_STRICTER = 1.25
#: Percent: a window that cuts off no more than this on any side is the whole picture.
_HARDLY = 1

Float = npt.NDArray[np.float32]
Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Match:
    """How well motion and background agree, -1 to 1, and where: ``shift`` in cells."""

    motion: float
    still: float
    shift: float
    shared: int
    moves: int
    window: Window = _WHOLE


def best(one: Trace, two: Trace, shifts: Sequence[int]) -> Match | None:
    """The best alignment near one of ``shifts``: of the whole pictures, else of a window of one; None if none fits."""
    whole = _aligned(one, two, shifts)
    if whole is not None and distance_of(whole) < DISTANCE:
        return whole
    found = [whole] if whole is not None else []
    for ours, theirs, sign in ((one, two, 1), (two, one, -1)):
        window = _registered(ours.still, theirs.still)
        if max(window) <= _HARDLY or _fit(ours.still, theirs.still, window) < _LEAST_STILL:
            continue
        match = _aligned(_smoothed(ours, window), _smoothed(theirs), [sign * shift for shift in shifts])
        if match is not None:
            found.append(replace(match, shift=sign * match.shift, window=window))
    return min(found, key=distance_of, default=None)


def _aligned(one: Trace, two: Trace, shifts: Sequence[int]) -> Match | None:
    """The best of the shifts within a cell of those given, by halves of cells."""
    ours, theirs = motion_of(one.cells), motion_of(two.cells)
    best, chosen = -2.0, None
    for shift, half in {(shift + half // 2, half % 2) for shift in shifts for half in range(-2, 4)}:
        shared = _shared(len(one), len(two), shift, half)
        if shared is not None and (motion := _likeness(*_moving(ours, theirs, shared))) > best:
            best, chosen = motion, (shift + half / 2, shared)
    if chosen is None:
        return None
    shift_cells, shared = chosen
    moving = _moving(ours, theirs, shared)
    energy = np.sqrt(np.square(moving[0]).mean((1, 2)) * np.square(moving[1]).mean((1, 2)))
    still = _likeness(*(part - part.mean() for part in _stills(one, two, shared)))
    return Match(best, still, shift_cells, shared.cells, int(np.count_nonzero(energy > LEAST_MOTION)))


def distance_of(match: Match) -> float:
    """1 (no copy) if the background differs or too little is shared, else how far from one the correlation is."""
    cropped = any(match.window)
    still, shared = (_LEAST_STILL_CROPPED, _LEAST_SHARED_CROPPED) if cropped else (_LEAST_STILL, _LEAST_SHARED)
    if match.still < still or match.shared < shared or match.moves < LEAST_MOVES:
        return 1.0
    return max(0.0, min(1.0, (1 - match.motion) * (_STRICTER if cropped else 1)))


@dataclass(frozen=True, slots=True)
class _Shared:
    """Where the time that both show begins in each, and if the first is half a cell (``odd``) behind."""

    ours: int
    theirs: int
    cells: int
    odd: int


def _shared(one: int, two: int, shift: int, half: int) -> _Shared | None:
    """What both show, of so many cells each, if the second begins ``shift`` and ``half`` halves into the first."""
    whole, odd = shift + half // 2, half % 2
    begin, end = max(0, -whole), min(two, one - odd - whole)
    return _Shared(begin + whole, begin, end - begin, odd) if end - begin >= _LEAST_SHARED else None


def _moving(ours: Float, theirs: Float, shared: _Shared) -> tuple[Float, Float]:
    """The motion of both in the time they share; motion between two cells is the mean of theirs."""
    count = shared.cells - LAG
    part = ours[shared.ours : shared.ours + count]
    if shared.odd:
        part = np.asarray((part + ours[shared.ours + 1 : shared.ours + 1 + count]) / 2, np.float32)
    return part, theirs[shared.theirs : shared.theirs + count]


def _stills(one: Trace, two: Trace, shared: _Shared) -> tuple[Float, Float]:
    """The mean pictures of both in the time they share."""
    ours = one.moving[shared.ours : shared.ours + shared.cells].mean(0, dtype=np.float32)
    if shared.odd:
        ours = (ours + one.moving[shared.ours + 1 : shared.ours + 1 + shared.cells].mean(0, dtype=np.float32)) / 2
    theirs = two.moving[shared.theirs : shared.theirs + shared.cells].mean(0, dtype=np.float32)
    return ours * np.float32(one.scale) + one.still, theirs * np.float32(two.scale) + two.still


def _likeness(one: Float, two: Float) -> float:
    return float(np.vdot(one, two) / max(np.sqrt(float(np.vdot(one, one)) * float(np.vdot(two, two))), 1e-9))


@functools.cache
def _kept(begin: int, end: int) -> Float:
    """Weights that scale what is left without so many percent at both ends to the whole."""
    return scaling(begin * SIDE / 100, SIDE - end * SIDE / 100, SIDE, SIDE)


def _cut(pictures: Float, window: Window) -> Float:
    """What is left without so many percent at the top, bottom, left and right."""
    top, bottom, left, right = window
    return np.asarray(_kept(top, bottom) @ pictures @ _kept(left, right).T, np.float32)


def _smoothed(trace: Trace, window: Window = _WHOLE) -> Trace:
    """The window of a trace, with the fine detail gone that scaling changes."""
    blur = np.asarray(np.eye(SIDE, k=-1) + 2 * np.eye(SIDE) + np.eye(SIDE, k=1), np.float32)
    blur /= blur.sum(1, keepdims=True)
    still, cells = (np.asarray(blur @ _cut(part, window) @ blur.T, np.float32) for part in (trace.still, trace.cells))
    scale = max(float(np.abs(cells).max()), 1.0) / 127
    return Trace(still, np.rint(cells / scale).astype(np.int8), scale, trace.borders)


def _fit(ours: Float, theirs: Float, window: Window) -> float:
    cut = _cut(ours, window)
    return _likeness(cut - cut.mean(), theirs - theirs.mean())


def _registered(ours: Float, theirs: Float) -> Window:
    """The window of the mean picture ``ours`` that is most like ``theirs``, by descent from the best of a few.

    Where none of these is somewhat like it, none near them can be, and the whole picture comes back.
    """
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    theirs = theirs / max(float(np.linalg.norm(theirs)), 1e-9)
    fits: dict[Window, float] = {}

    def fit(window: Window) -> float:
        if window not in fits:
            cut = _cut(ours, window)
            spread = float(np.vdot(cut, cut)) - float(cut.sum()) ** 2 / cut.size
            fits[window] = float(np.vdot(cut, theirs)) / max(spread, 1e-9) ** 0.5
        return fits[window]

    best, window = max((fit(start), start) for start in STARTS)
    if best < LEAST_START:
        return _WHOLE
    for step in (4, 2, 1):
        for _ in range(6):
            near = [_moved(window, side, move) for side in range(4) for move in (-step, step)]
            score, found = max((fit(other), other) for other in near)
            if score <= best:
                break
            best, window = score, found
    return window


def _moved(window: Window, side: int, move: int) -> Window:
    sides = list(window)
    sides[side] = min(max(sides[side] + move, 0), _MOST_CROPPED)
    return sides[0], sides[1], sides[2], sides[3]
