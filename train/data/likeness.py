"""Find copies that no hash of bytes or frames finds: re-encoded, resized, recompressed, of another frame rate.

A clip's *look* is a perceptual video hash on a normalised timeline, after Coskun, Sankur and Memon 2006
("Spatio-temporal transform based video hashing", IEEE Transactions on Multimedia 8): its time is cut into 8 equal
parts, and of each the mean picture is taken, 32x32 grey. What stays (the mean of all parts) and what moves (each part
less the one before, and less the change of brightness) are compared apart: two moments of one static camera share the
first and not the second. The distance of two clips is the larger of ``1 - correlation`` of what moves and ten times
that of what stays; brightness and contrast do not matter. Clips in which hardly anything moves have no look: two
moments of such a scene cannot be told from two copies.

What moves is kept as a sketch (Charikar, Chen and Farach-Colton 2002), a kilobyte a clip. All pairs are compared, as
matrix products of shorter sketches first: that misses none, and a hundred thousand clips take two minutes.
Shapes: N clips, T frames, K parts, S side, D numbers of a sketch.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.progress import track

__all__ = ["DISTANCE", "SIDE", "Look", "Pair", "look_of", "pairs"]

#: Clips nearer than this are called copies (how it was chosen: docs/data.md).
DISTANCE = 0.1
#: Side of the pictures that a look is made of.
SIDE = 32
_PARTS = 8
_SKETCH, _SHORT = 1024, 128
_STILL_WEIGHT = 10.0
#: Root mean square, in grey levels of 255: what moves less is noise, or the encoder's own pulse.
_LEAST_MOTION = 0.5
_LEAST_CONTRAST = 1.0
#: Six standard deviations of the short sketches' correlation near the usual distance.
_SLACK = 0.1
_BLOCK = 2048

Float = npt.NDArray[np.float32]
Sketch = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """still: float16 (S / 2 * S / 2,), unit length. motion: int8 (D,), any length; mirrored: its mirror image's."""

    still: npt.NDArray[np.float16]
    motion: Sketch
    mirrored: Sketch

    @property
    def mirror(self) -> "Look":
        """The look of the mirror image."""
        flat = self.still.reshape(SIDE // 2, SIDE // 2)[:, ::-1].reshape(-1)
        return Look(flat, self.mirrored, self.motion)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two clips by their places, ``first`` < ``second``; ``mirrored`` if one is like the other's mirror image."""

    first: int
    second: int
    distance: float
    mirrored: bool = False


def look_of(frames_TSS: npt.NDArray[np.uint8], times_s: npt.ArrayLike) -> Look | None:
    """The look of T grey frames of 32x32 shown at rising times; None if too little is to be seen, or moves."""
    if len(frames_TSS) < 2:
        return None
    parts_KSS = _parts(frames_TSS, np.asarray(times_s, np.float64))
    still = parts_KSS.mean(0).reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    still -= still.mean()
    motion = np.diff(parts_KSS, axis=0)
    motion -= motion.mean((1, 2), keepdims=True)
    if still.std() < _LEAST_CONTRAST or np.sqrt(np.square(motion).mean()) < _LEAST_MOTION:
        return None
    flat = (still / np.linalg.norm(still)).astype(np.float16).reshape(-1)
    return Look(flat, _sketch(motion), _sketch(motion[..., ::-1]))


def _parts(frames_TSS: npt.NDArray[np.uint8], times_s: npt.NDArray[np.float64]) -> Float:
    """The mean picture of each part (K, S, S); a frame counts for as long as it is shown."""
    edges = np.append(times_s, times_s[-1] + np.median(np.diff(times_s)))
    edges = (edges - edges[0]) * (_PARTS / max(edges[-1] - edges[0], 1e-9))
    part = np.arange(_PARTS)[:, None]
    shown = np.clip(np.minimum(edges[1:], part + 1) - np.maximum(edges[:-1], part), 0, None)
    shown = (shown / np.maximum(shown.sum(1, keepdims=True), 1e-9)).astype(np.float32)
    means = shown @ frames_TSS.reshape(len(frames_TSS), -1).astype(np.float32)
    return np.asarray(means.reshape(_PARTS, SIDE, SIDE), np.float32)


@functools.cache
def _hashes() -> tuple[npt.NDArray[np.int64], Float]:
    """In which order, and with which signs, the changes of the pictures are summed up; always the same."""
    rng = np.random.default_rng(0)
    count = (_PARTS - 1) * SIDE * SIDE
    return rng.permutation(count), rng.choice(np.asarray([-1, 1], np.float32), count)


def _sketch(motion: Float) -> Sketch:
    order, signs = _hashes()
    sums = (motion.reshape(-1)[order] * signs).reshape(-1, _SKETCH).sum(0)
    return np.asarray(np.rint(sums * (127 / np.abs(sums).max())), np.int8)


def pairs(looks: Sequence[Look | None], distance: float = DISTANCE, mirrored: bool = False) -> list[Pair]:
    """Every two clips nearer than ``distance``, with their mirror images too if asked."""
    places = [place for place, look in enumerate(looks) if look is not None]
    known = [look for look in looks if look is not None]
    if len(known) < 2 or distance <= 0:
        return []
    found = {(pair.first, pair.second): pair for pair in _near(known, known, distance)}
    if mirrored:
        for pair in _near(known, [look.mirror for look in known], distance):
            found.setdefault((pair.first, pair.second), Pair(pair.first, pair.second, pair.distance, True))
    return [
        Pair(places[pair.first], places[pair.second], pair.distance, pair.mirrored) for _, pair in sorted(found.items())
    ]


def _near(looks: Sequence[Look], others: Sequence[Look], distance: float) -> Iterator[Pair]:
    short = _shortened(looks)
    short_other = short if looks is others else _shortened(others)
    starts = range(0, len(looks), _BLOCK)
    for top, left in track([(a, b) for a in starts for b in starts if a <= b], "compare"):
        likeness = short[top : top + _BLOCK] @ short_other[left : left + _BLOCK].T
        rows, columns = np.nonzero(likeness > 1 - distance - _SLACK)
        above = columns + left > rows + top  # each pair once; a clip's own mirror image is no copy
        for first, second in zip((rows[above] + top).tolist(), (columns[above] + left).tolist(), strict=True):
            apart = _distance(looks[first], others[second])
            if apart < distance:
                yield Pair(first, second, apart)


def _shortened(looks: Sequence[Look]) -> Float:
    """Sketches summed to a few numbers, of unit length (N, d)."""
    found = np.empty((len(looks), _SHORT), np.float32)
    for row, look in zip(found, looks, strict=True):
        row[:] = look.motion.reshape(-1, _SHORT).sum(0, dtype=np.int32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9), np.float32)


def _distance(one: Look, two: Look) -> float:
    still = float(one.still.astype(np.float32) @ two.still.astype(np.float32))
    a, b = one.motion.astype(np.float32), two.motion.astype(np.float32)
    return max(0.0, 1 - float(a @ b / np.sqrt((a @ a) * (b @ b))), _STILL_WEIGHT * (1 - still))
