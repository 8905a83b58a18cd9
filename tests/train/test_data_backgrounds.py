"""What is asked of many pairs at once before they are aligned agrees with what the pictures themselves say."""

import numpy as np
import numpy.typing as npt
import pytest

from train.data.backgrounds import Backgrounds
from train.data.moments import KINDS, SHIFTS, Moments
from train.data.neighbours import bits_apart
from train.data.trace import SIDE, Coded, Trace, code, motion_of

Float = npt.NDArray[np.float32]


def walk(seed: int, cells: int) -> Trace:
    """Smooth noise that changes slowly, around a picture of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 12, (cells, 8, 8)).cumsum(0) / 3 + rng.normal(110, 40, (8, 8))
    pictures = np.kron(coarse, np.ones((4, 4))).clip(0, 255).astype(np.float32)
    still = pictures.mean(0)
    scale = max(float(np.abs(pictures - still).max()), 1.0) / 127
    return Trace(still, np.rint((pictures - still) / scale).astype(np.int8), scale, (0, 0, 0, 0))


def pooled(pictures: Float) -> Float:
    return np.asarray(pictures.mean(0).reshape(4, 8, 4, 8).mean((1, 3)), np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_shared_pictures_are_those_of_the_shared_cells(turned: bool) -> None:
    traces = [walk(seed, 20 + 7 * seed) for seed in range(6)]
    backs = Backgrounds()
    for trace in (traces[0], None, *traces[1:]):
        backs.add(trace)
    places = [0, 2, 3, 4, 5, 6]
    for shift in (-31, -6, 0, 3, 17):
        for i, j in ((0, 5), (1, 4), (2, 3), (5, 0)):
            one, two = traces[i], traces[j].mirror if turned else traces[j]
            begin, end = max(0, -shift), min(len(two), len(one) - shift)
            found = backs.likeness(*(np.asarray([v]) for v in (places[i], places[j], 2 * turned, shift)))[0][0]
            if end <= begin:
                assert found == 0
                continue
            parts = [
                pooled(trace.cells[a : a + end - begin] + trace.still)
                for trace, a in ((one, begin + shift), (two, begin))
            ]
            assert found == pytest.approx(
                np.asarray(np.corrcoef(np.stack([part.ravel() for part in parts])))[0, 1], abs=0.02
            )


def test_an_hour_of_video_does_not_run_over() -> None:
    """Sums of 16 bits do, many times; what is said of two equal clips does not depend on it."""
    ramp = np.tile(np.linspace(0, 250, SIDE, dtype=np.float32), (SIDE, 1))
    long = Trace(ramp, np.zeros((28_800, SIDE, SIDE), np.int8), 1.0, (0, 0, 0, 0))
    backs = Backgrounds()
    backs.add(long)
    backs.add(Trace(long.still, long.moving[:80], 1.0, long.borders))
    ones = np.ones(4, np.int64)
    shifts = np.asarray([0, 255, 9_000, 28_700])
    assert backs.likeness(0 * ones, ones, 0 * ones, shifts)[0] == pytest.approx(1, abs=1e-3)
    mirrored = backs.likeness(0 * ones, ones, 2 * ones, shifts)[0]
    assert mirrored == pytest.approx(-1, abs=1e-3)


def test_a_part_of_a_film_of_many_scenes_is_alike_though_the_films_are_not() -> None:
    scenes = [walk(seed, 40) for seed in range(9)]
    cells = np.concatenate([scene.cells + scene.still for scene in scenes])
    still = cells.mean(0)
    scale = float(np.abs(cells - still).max()) / 127
    backs = Backgrounds()
    backs.add(Trace(still, np.rint((cells - still) / scale).astype(np.int8), scale, (0, 0, 0, 0)))
    backs.add(scenes[6])
    one = np.ones(1, np.int64)
    assert backs.alike(0 * one, one, 0 * one, 240 * one).all()
    assert not backs.alike(0 * one, one, 0 * one, 40 * one).all()


def test_alignments_and_their_bits_are_those_of_plain_loops() -> None:
    traces = [walk(seed, cells) for seed, cells in enumerate((30, 44, 25, 60))]
    part = Trace(traces[3].still, traces[3].moving[17:50], traces[3].scale, traces[3].borders)
    rows: dict[int, list[Coded | None]] = {0: [], 1: [], 2: []}
    for trace in (*traces, part, None):
        motion = None if trace is None else motion_of(trace.cells)
        rows[0].append(None if motion is None else code(motion))
        rows[1].append(None if motion is None else code(motion, 0.05))
        rows[2].append(None if motion is None else code(motion[..., ::-1]))
    moments = Moments(rows, 5)
    keys = np.concatenate(list(moments.agreed(16)))
    pair, shift = np.divmod(keys, SHIFTS)
    assert (3 * 6 + 4) * KINDS in pair.tolist()  # the part, and where it begins
    assert 17 in (shift[pair == (3 * 6 + 4) * KINDS] - SHIFTS // 2).tolist()
    rng = np.random.default_rng(0)
    left, right, kind = (rng.integers(0, high, 300) for high in (6, 6, 4))
    shift = rng.integers(-40, 40, 300)
    found = moments.mean_apart(left, right, kind, shift)
    for a, b, k, by, apart in zip(left, right, kind, shift, found, strict=True):
        one, two = rows[k & 1][a], rows[k & 2][b]
        bits = []
        for cell in range(0 if one is None or two is None else len(two.codes)):
            assert one is not None
            assert two is not None
            if 0 <= cell + by < len(one.codes) and one.moves[cell + by] and two.moves[cell]:
                bits.append(int(bits_apart(one.codes[cell + by], two.codes[cell])))
        assert apart == (pytest.approx(np.mean(bits)) if len(bits) >= 5 else 64)
