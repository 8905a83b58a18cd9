"""What a clip shows over time, small enough to keep of every clip: to find parts, crops and mirror images of others.

Time is cut into cells of an eighth of a second, and of each the mean picture is kept, 32x32 grey, whatever the frame
rate: a frame counts for as long as it is shown. Black borders (letterbox, pillarbox) are cut off first. What
moves at a cell is the change from it to the next but one, less the change of brightness: the background, which a
static camera shows all day, is not in it. Each cell's motion has a code of 64 bits, the signs of random projections
of its coarse picture (Charikar 2002), in which nearly equal motions differ in few bits.
Shapes: K cells, G side of the pictures that come in, S side of those kept.
"""

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["GRID", "LAG", "LEAST_MOTION", "SIDE", "STEP_S", "Coded", "Trace", "Tracer", "code", "motion_of", "scaling"]

#: Side of the pictures that a trace is made of.
GRID = 64
#: Side of the pictures that it keeps.
SIDE = 32
#: Seconds of a cell.
STEP_S = 0.125
#: Cells from one picture to that it is compared with.
LAG = 2
#: Root mean square, in grey levels of 255: what moves less is noise.
LEAST_MOTION = 0.7
_COARSE = 8
_BITS = 64
#: Grey levels: a border is no lighter than this, and its pixels differ by no more than that.
_DARK, _EVEN = 40.0, 14.0
#: The share of each side that must be left between borders.
_LEAST_LEFT = 0.4

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """still: float32 (S, S), the mean picture; moving: int8 (K, S, S), times ``scale`` each cell's picture less that.

    borders: (top, bottom, left, right), shares of the picture that were cut off.
    """

    still: Float
    moving: npt.NDArray[np.int8]
    scale: float
    borders: tuple[float, float, float, float]

    def __len__(self) -> int:
        return len(self.moving)

    @property
    def mirror(self) -> "Trace":
        """The trace of the mirror image."""
        top, bottom, left, right = self.borders
        return Trace(self.still[:, ::-1], self.moving[..., ::-1], self.scale, (top, bottom, right, left))

    @property
    def cells(self) -> Float:
        """Each cell's picture less the mean picture, float32 (K, S, S)."""
        return np.asarray(self.moving * np.float32(self.scale), np.float32)


@dataclass(slots=True)
class Tracer:
    """Takes the frames of a clip one by one, as they are decoded; no more than the cells is kept."""

    _sums: list[Float] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)
    _start_s: float = 0.0
    _last: tuple[float, Float] | None = None
    _shown_s: float = 0.0

    def add(self, frame_GG: npt.NDArray[np.uint8], time_s: float) -> None:
        """A frame of 64x64 grey that is shown from ``time_s`` on; times rise."""
        if self._last is None:
            self._start_s = time_s
        else:
            self._shown_s = time_s - self._last[0]
            self._spread(self._last[0], time_s, self._last[1])
        self._last = (time_s, frame_GG.astype(np.float32))

    def _spread(self, begin_s: float, end_s: float, frame: Float) -> None:
        begin, end = (begin_s - self._start_s) / STEP_S, (end_s - self._start_s) / STEP_S
        for cell in range(int(begin), math.ceil(end - 1e-6)):
            while len(self._sums) <= cell:
                self._sums.append(np.zeros((GRID, GRID), np.float32))
                self._weights.append(0.0)
            share = min(end, cell + 1) - max(begin, cell)
            self._sums[cell] += share * frame
            self._weights[cell] += share

    def done(self) -> Trace | None:
        """The trace of all frames; None if there are too few."""
        if self._last is None or not self._shown_s:
            return None
        self._spread(self._last[0], self._last[0] + self._shown_s, self._last[1])
        kept = [total / weight for total, weight in zip(self._sums, self._weights, strict=True) if weight > 0.5]
        return trace_of(np.stack(kept)) if len(kept) > LAG else None


def trace_of(cells_KGG: Float) -> Trace:
    """Cut the borders off, scale down, and part what stays from what moves."""
    low, high, mean = cells_KGG.min(0), cells_KGG.max(0), cells_KGG.mean(0)
    top, bottom = _between(low.min(1), high.max(1), mean.mean(1))
    inner = slice(math.ceil(top), int(bottom))
    left, right = _between(low[inner].min(0), high[inner].max(0), mean[inner].mean(0))
    small = _between_borders(top, bottom) @ cells_KGG @ _between_borders(left, right).T
    still = small.mean(0)
    small -= still
    scale = max(float(np.abs(small).max()), 1.0) / 127
    borders = (top / GRID, 1 - bottom / GRID, left / GRID, 1 - right / GRID)
    return Trace(np.asarray(still, np.float32), np.rint(small / scale).astype(np.int8), scale, borders)


def _between(low: Float, high: Float, mean: Float) -> tuple[float, float]:
    """Where the picture begins and ends between borders; low, high, mean: of each line."""
    first, after = _border(low, high, mean), len(low) - _border(low[::-1], high[::-1], mean[::-1])
    return (first, after) if after - first >= _LEAST_LEFT * len(low) else (0.0, float(len(low)))


def _border(low: Float, high: Float, mean: Float) -> float:
    """Lines of border: whole ones, and the part of the next that its brightness between its neighbours tells."""
    highest = np.maximum.accumulate(high)
    dark = (highest < _DARK) & (highest - np.minimum.accumulate(low) < _EVEN)
    lines = len(low) if dark.all() else int(np.argmin(dark))
    if not 0 < lines < len(low) - 1:
        return float(lines)
    outside, inside = float(mean[lines - 1]), float(mean[lines + 1])
    share = (float(mean[lines]) - outside) / (inside - outside) if inside - outside > _EVEN else 1.0
    return lines + 1 - min(max(share, 0.0), 1.0)


def _between_borders(first: float, after: float) -> Float:
    """Weights (S, G) that scale what is between; a line that is partly border is taken to be as the next."""
    weights = scaling(first, after, GRID, SIDE).copy()
    for mixed, inside in ((int(first), int(first) + 1), (int(after), int(after) - 1)):
        if mixed not in (first, after):
            weights[:, inside] += weights[:, mixed]
            weights[:, mixed] = 0
    return weights


@functools.cache
def scaling(begin: float, end: float, size: int, out: int) -> Float:
    """Weights (out, size) that scale the lines from ``begin`` to ``end``, of ``size``, to ``out`` lines by area."""
    edges, line = np.linspace(begin, end, out + 1), np.arange(size)
    shared = np.minimum(edges[1:, None], line + 1) - np.maximum(edges[:-1, None], line)
    shared = np.clip(shared, 0, None)
    return np.asarray(shared / shared.sum(1, keepdims=True), np.float32)


def motion_of(cells_KSS: Float) -> Float:
    """Changes over ``LAG`` cells, less the change of brightness: (K - LAG, S, S)."""
    motion = cells_KSS[LAG:] - cells_KSS[:-LAG]
    return np.asarray(motion - motion.mean((1, 2), keepdims=True), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """codes: uint64 (K - LAG,), one a cell; moves: bool (K - LAG,), where enough moves for it to say something."""

    codes: npt.NDArray[np.uint64]
    moves: npt.NDArray[np.bool_]


@functools.cache
def _directions() -> Float:
    """Always the same."""
    return np.random.default_rng(1).normal(size=(_COARSE * _COARSE, _BITS)).astype(np.float32)


def code(motion_KSS: Float, margin: float = 0.0) -> Coded:
    """The codes of a clip's motion, or of its middle without ``margin`` of each side."""
    moves = np.sqrt(np.square(motion_KSS).mean((1, 2))) > LEAST_MOTION
    weights = scaling(margin * SIDE, (1 - margin) * SIDE, SIDE, _COARSE)
    coarse = weights @ motion_KSS @ weights.T
    coarse -= coarse.mean((1, 2), keepdims=True)
    bits = coarse.reshape(-1, _COARSE * _COARSE) @ _directions() > 0
    return Coded(np.packbits(bits, axis=1).view(np.uint64)[:, 0], moves)
