"""Parts, crops, bordered and mirrored copies are found and named; other moments before the same camera are not."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_data_check import vidon
from tests.train.videos import Frame, encode
from toolkit.cli.footage import FOOTAGE
from toolkit.cv import opencv
from train.data.check import check
from train.data.index import index_clips
from train.data.neighbours import bits_apart, near_codes
from train.data.relations import Relation, described, relations
from train.data.spread import spread
from train.data.trace import GRID, STEP_S, Trace, Tracer, motion_of, scaling

FPS = 25
Change = Callable[[list[Frame]], tuple[list[Frame], int]]


def filmed(seed: int, frames: int = 75, camera: int = 0, height: int = 96, width: int = 128) -> list[Frame]:
    """Two people of noise wander before a camera's own background; the seed says who and where."""
    cv2, view, rng = opencv(), np.random.default_rng(1000 + camera), np.random.default_rng(seed)
    back = cv2.GaussianBlur(view.normal(110, 300, (height, width, 3)), (0, 0), 5)
    sizes = rng.integers(14, 30, (2, 2))
    people = [cv2.resize(rng.uniform(0, 255, (4, 3, 3)), (int(w), int(h) + 10)) for h, w in sizes]
    speed, sway = rng.uniform(-1.2, 1.2, (2, 2)), rng.uniform(3, 14, (2, 2))
    start, rhythm = rng.uniform(20, 70, (2, 2)), rng.uniform(0.05, 0.2, (2, 2))
    film = []
    for index in range(frames):
        frame = back.copy()
        for person, at in zip(people, start + index * speed + sway * np.sin(index * rhythm), strict=True):
            top = int(np.clip(at[0], 0, height - person.shape[0]))
            left = int(np.clip(at[1] * 1.3, 0, width - person.shape[1]))
            frame[top : top + person.shape[0], left : left + person.shape[1]] = person
        film.append(frame.clip(0, 255).astype(np.uint8))
    return film


def pasted(frames: list[Frame], rows: int, columns: int) -> list[Frame]:
    return [np.pad(frame, ((rows, rows), (columns, columns), (0, 0))) for frame in frames]


COPIES: dict[str, tuple[Change, set[str]]] = {
    "start cut off": (lambda film: (film[22:], FPS), {"trimmed"}),
    "end cut off": (lambda film: (film[:45], FPS), {"trimmed"}),
    "middle, 12.5 frames/s": (lambda film: (film[10:60:2], 12), {"trimmed"}),
    "cropped": (lambda film: ([f[5:-5, 6:-6] for f in film], FPS), {"cropped"}),
    "cropped at a corner": (lambda film: ([f[8:, :-10] for f in film], FPS), {"cropped"}),
    "cropped and trimmed": (lambda film: ([f[4:-4, 6:-6] for f in film[15:65]], FPS), {"cropped", "trimmed"}),
    "letterbox": (lambda film: (pasted(film, 16, 0), FPS), {"bordered"}),
    "pillarbox, trimmed": (lambda film: (pasted(film[20:], 0, 20), FPS), {"bordered", "trimmed"}),
    "mirrored, trimmed": (lambda film: ([f[:, ::-1] for f in film[20:]], FPS), {"mirrored", "trimmed"}),
    "mirrored, letterbox, trimmed": (
        lambda film: (pasted([f[:, ::-1] for f in film[:50]], 12, 0), FPS), {"mirrored", "bordered", "trimmed"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def films() -> list[list[Frame]]:
    """Eight other moments before one camera, and one before another."""
    return [*(filmed(seed) for seed in range(8)), filmed(0, camera=1)]


@pytest.fixture(scope="module")
def shelf(films: list[list[Frame]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for number, film in enumerate(films):
        encode(root / "train" / "ab"[number % 2] / f"film{number}.mp4", film, fps=FPS)
    return root


def traced(film: Sequence[Frame], fps: float = FPS) -> Trace | None:
    tracer, cv2 = Tracer(), opencv()
    for index, frame in enumerate(film):
        small = cv2.resize(frame, (GRID, GRID), interpolation=cv2.INTER_AREA)
        tracer.add(np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8), index / fps)
    return tracer.done()


def kinds(relation: Relation) -> set[str]:
    return {kind for kind in ("trimmed", "cropped", "bordered", "mirrored") if getattr(relation, kind)}


def test_other_moments_before_a_camera_are_silent(shelf: Path) -> None:
    code, out, _ = vidon("data", "check", shelf, "--mirrored", "--json")
    found = json.loads(out)
    assert (code, found["clips"], found["near_duplicates"], found["relations"]) == (0, 9, [], [])


@pytest.mark.parametrize("name", COPIES)
def test_each_relation_is_found_and_named(name: str, films: list[list[Frame]], tmp_path: Path) -> None:
    change, expected = COPIES[name]
    film, fps = change(films[3])
    traces = [traced(each) for each in films]
    encode(tmp_path / "copy" / "copy.mp4", film, fps=fps, options={"crf": "30"})
    encode(tmp_path / "film" / "film.mp4", films[3], fps=FPS)
    found = relations([*traces, traced(film, fps)], mirrored=True)
    assert [(one.first, one.second, kinds(one)) for one in found] == [(3, 9, expected)]
    code, out, _ = vidon("data", "check", tmp_path, "--mirrored", "--json")  # the same from encoded files
    told = json.loads(out)
    assert len(told["near_duplicates"]) + len(told["leaks"]) == 1
    assert (code == 2) == bool(told["leaks"])  # the split is made from the files' names
    assert [{kind for kind in expected if one[kind]} for one in told["relations"]] == [expected]


@pytest.mark.parametrize("start", [6, 13, 20, 31])
def test_where_a_part_begins_is_told(start: int, films: list[list[Frame]]) -> None:
    part, whole = traced(films[5][start : start + 40]), traced(films[5])
    [first] = relations([part, None, whole])
    [second] = relations([whole, part])
    assert (first.first, first.second) == (0, 2)
    assert -first.offset_s == pytest.approx(start / FPS, abs=STEP_S / 2)
    assert second.offset_s == pytest.approx(start / FPS, abs=STEP_S / 2)
    assert second.shown_s == pytest.approx(40 / FPS, abs=2 * STEP_S)
    where = f"+{second.offset_s:.2f} s"
    assert f"{where} of the first on" in described(second)
    assert f"+{-first.offset_s:.2f} s of the second on" in described(first)


def test_a_part_in_another_split_is_a_leak(films: list[list[Frame]], tmp_path: Path) -> None:
    encode(tmp_path / "train" / "a" / "whole.mp4", films[1], fps=FPS)
    encode(tmp_path / "train" / "b" / "other.mp4", films[2], fps=FPS)
    part = encode(tmp_path / "test" / "a" / "part.mp4", films[1][25:65], fps=FPS)
    code, out, _ = vidon("data", "check", tmp_path, "--json")
    found = json.loads(out)
    assert (code, len(found["leaks"]), found["near_duplicates"]) == (2, 1, [])
    assert "trimmed: 1.6 s from +1.00 s of the " in found["leaks"][0]
    assert found["leaks"][0].endswith(" in test and train")
    assert {Path(found["relations"][0][key]).name for key in ("first", "second")} == {"whole.mp4", "part.mp4"}
    assert json.loads(vidon("data", "check", tmp_path, "--json", "--distance", "0")[1])["leaks"] == []
    part.rename(tmp_path / "train" / "a" / "part.mp4")
    (tmp_path / "test" / "a").rmdir()
    assert vidon("data", "check", tmp_path)[0] == 0  # within a split: a warning


def test_mirror_images_of_parts_only_if_asked(films: list[list[Frame]]) -> None:
    traces = [traced(films[0]), traced([frame[:, ::-1] for frame in films[0][20:]])]
    assert relations(traces) == []
    assert [kinds(one) for one in relations(traces, mirrored=True)] == [{"mirrored", "trimmed"}]


def test_parts_of_one_file_may_overlap_within_a_split(films: list[list[Frame]], tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", films[4], fps=FPS)
    rows = [f"{video},a,0,2,g,train", f"{video},b,0.6,3,g,train"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start,end,group,split", *rows]))
    assert check(index_clips(tmp_path / "list.csv"), 10, 2, 1).problems == ()
    other = encode(tmp_path / "w.mp4", films[4], fps=FPS, options={"crf": "33"})
    (tmp_path / "list.csv").write_text(
        "\n".join(["path,label,start,end,group,split", rows[0], f"{other},b,0.6,3,g,train"])
    )
    problems = check(index_clips(tmp_path / "list.csv"), 10, 2, 1).problems
    assert [problem.kind for problem in problems] == ["near-duplicate"]
    assert problems[0].text.endswith(", labels a and b")


def test_real_moments_before_one_camera_share_nothing(tmp_path: Path) -> None:
    """Every second of the shipped footage, cut at places that do not overlap, mirror images too."""
    lines = ["path,label,start,end"]
    for path in sorted(FOOTAGE.glob("*.mp4")):
        lines += [f"{path},{path.name.split('-')[1]},{start},{start + 2}" for start in range(0, 4, 2)]
    (tmp_path / "moments.csv").write_text("\n".join(lines))
    report = check(index_clips(tmp_path / "moments.csv", splits="given"), 10, 2, 1, mirrored=True)
    assert [problem.text for problem in report.problems if problem.relation] == []


@pytest.mark.parametrize("fps", [8, 12.5, 25, 60])
def test_a_trace_hardly_depends_on_the_frame_rate(fps: float, films: list[list[Frame]]) -> None:
    times = np.arange(0, 3, 1 / fps)
    paced = [films[6][min(int(t * FPS + 1e-6), 74)] for t in times]
    one, two = traced(films[6]), traced(paced, fps)
    assert one is not None
    assert two is not None
    assert abs(len(one) - len(two)) <= 1
    count = min(len(one), len(two))
    moves = [motion_of(trace.cells[:count]).ravel() for trace in (one, two)]
    assert np.corrcoef(moves[0], moves[1])[0, 1] > 0.75


def test_black_borders_are_cut_off_and_dark_scenes_are_not(films: list[list[Frame]]) -> None:
    boxed, plain = traced(pasted(films[2], 24, 0)), traced(films[2])
    assert boxed is not None
    assert plain is not None
    assert boxed.borders == pytest.approx((1 / 6, 1 / 6, 0, 0), abs=0.02)
    assert plain.borders == (0, 0, 0, 0)
    black = traced([np.zeros((96, 128, 3), np.uint8)] * 20)
    assert black is not None
    assert black.borders == (0, 0, 0, 0)


def test_scaling_keeps_the_mean_and_a_constant() -> None:
    weights = scaling(3.2, 28.9, 32, 16)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    line = np.arange(32) + 0.5
    assert (weights @ line).mean() == pytest.approx((3.2 + 28.9) / 2, abs=0.02)


def test_near_codes_are_found_among_many_and_others_are_not() -> None:
    """Against all pairs compared."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**63, 3000).astype(np.uint64) * np.uint64(2) + rng.integers(0, 2, 3000).astype(np.uint64)
    for place in range(300):  # each with a neighbour of up to eight other bits
        flips = rng.choice(64, rng.integers(0, 9), replace=False).astype(np.uint64)
        codes[1000 + place] = codes[place] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    [(one, two)] = near_codes(codes, np.arange(3000), 8)
    assert (bits_apart(codes[one], codes[two]) <= 8).all()
    near = bits_apart(codes[:, None], codes[None]) <= 8
    wanted = {(a, b) for a, b in np.argwhere(near).tolist() if a < b}
    found = set(zip(one.tolist(), two.tolist(), strict=True))
    assert len(found) == len(one)
    assert found <= wanted
    assert len(found) > 0.97 * len(wanted)
    for few, owners in ((codes, np.zeros(3000, np.int64)), (codes[:0], np.zeros(0, np.int64))):
        [(none, _)] = near_codes(few, owners, 8)  # all of one owner, or nothing at all
        assert len(none) == 0


def test_near_codes_in_parts_are_those_in_one_go() -> None:
    """However little memory there is; a part holds all that stands behind the codes of an owner."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2**40, 20_000).astype(np.uint64)
    owners = np.sort(rng.integers(0, 400, 20_000))
    [(one, two)] = near_codes(codes, owners, 16)
    parts = list(near_codes(codes, owners, 16, many=len(one) // 7))
    assert len(parts) > 3
    assert max(len(lower) for lower, _ in parts) < len(one) / 2
    assert np.array_equal(np.concatenate([lower for lower, _ in parts]), one)
    assert np.array_equal(np.concatenate([higher for _, higher in parts]), two)
    seen = [set(owners[lower].tolist()) for lower, _ in parts]
    assert all(not (a & b) for a, b in itertools.combinations(seen, 2))


def test_nothing_is_proposed_of_still_short_or_absent_clips(films: list[list[Frame]]) -> None:
    still = [films[0][0]] * 50
    traces = [traced(still), traced(still), traced(films[0][:3]), traced(films[0][:1]), None]
    assert traces[3] is None
    assert relations(traces, mirrored=True) == []
    assert relations([]) == []


def test_processes_find_the_same(films: list[list[Frame]], monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [traced(film) for film in films] + [traced(film[10:60]) for film in films]
    alone = relations(traces)
    assert [(one.first, one.second) for one in alone] == [(place, place + 9) for place in range(9)]
    monkeypatch.setattr("train.data.relations._FEW", 1)
    assert relations(traces, workers=2) == alone


def test_items_are_made_ready_a_few_at_a_time() -> None:
    """They may be large: never are all of them in memory."""

    class Items(Sequence[int]):
        made = 0

        def __len__(self) -> int:
            return 500

        def __getitem__(self, place: Any) -> Any:
            Items.made += 1
            return place

    ahead = []
    for number, result in enumerate(spread(abs, Items(), "count", 2, 1)):
        assert result == number
        ahead.append(Items.made - number)
    assert len(ahead) == 500
    assert max(ahead) <= 16 * (4 * 2 + 1)
