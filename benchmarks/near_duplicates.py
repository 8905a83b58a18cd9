"""Copies that ``vidon data check`` finds, by what was done to them, and its false alarms before static cameras.

    python -m benchmarks.near_duplicates [--data ../shared/data] [--part held|tuning] [--originals 12] [--rounds 3]

Originals: surveillance clips, hand shapes of one signer before one background, and moments of 1.5 and 2.5 s cut every
second and a half or so from long shots of static cameras, which are the hard negatives: same background, other
people. Thresholds were chosen on ``tuning`` (folds 0 and 1, signer jack, the first half of two of the long shots); the
table is of ``held`` (folds 2 and 3, signer tom, the rest and a third long shot). Some originals, drawn by a seed, are
encoded again in each of the ways below, and all files go through one check with the settings of the command. A report
is right if both clips were made of one shot, wrong if they share no moment. Speed is processor time of the check on the
originals, as a multiple of decoding them, interleaved.
"""

import argparse
import csv
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from benchmarks.common import cpu_seconds, save
from tests.train.videos import encode
from toolkit.cv import opencv
from toolkit.progress import note, track
from train.data.check import check
from train.data.clip import Clip
from train.data.index import Dataset
from train.data.relations import relations
from train.data.trace import SIDE, Trace

Frame = npt.NDArray[np.uint8]
HEIGHT = 240
#: (long shot, start s, end s)
SHOTS = {
    "tuning": (("car-detection", 0.0, 15.0), ("one-by-one-person-detection", 0.0, 80.0)),
    "held": (
        ("car-detection", 16.0, 30.0), ("one-by-one-person-detection", 82.0, 139.0), ("bottle-detection", 0.0, 39.5),
    ),
}  # fmt: skip
FOLDS = {"tuning": ("0", "1"), "held": ("2", "3")}
SIGNERS = {"tuning": "jack", "held": "tom"}


@dataclass(frozen=True, slots=True)
class Shot:
    """A moment of a file; camera: what shares its background."""

    kind: str
    camera: str
    path: Path
    start_s: float = 0.0
    end_s: float = 1e9


@dataclass(frozen=True, slots=True)
class Film:
    """frames: RGB; fps: at which they are shown; and how to encode them."""

    frames: Sequence[Frame]
    fps: float
    codec: str = "libx264"
    suffix: str = ".mp4"
    options: tuple[tuple[str, str], ...] = (("crf", "28"), ("preset", "veryfast"))


Change = Callable[[Film, np.random.Generator], Film]


def shots(data: Path, part: str) -> list[Shot]:
    """All moments of a part."""
    with (data / "surv_fight" / "labels.csv").open() as file:
        found = [Shot("surveillance", row["source_group"], data / "surv_fight" / row["path"])
                 for row in csv.DictReader(file) if row["fold"] in FOLDS[part]]  # fmt: skip
    with (data / "asl_letters_2signers" / "labels.csv").open() as file:
        found += [Shot("hands", row["signer"], data / "asl_letters_2signers" / row["path"])
                  for row in csv.DictReader(file) if row["signer"] == SIGNERS[part]][::2]  # fmt: skip
    for name, begin, end in SHOTS[part]:
        path = data / "intel_sample_videos" / f"{name}.mp4"
        for length, every in ((1.5, 1.5), (2.5, 2.5)):
            starts = np.arange(begin, end - length, every).tolist()
            found += [Shot("static camera", name, path, start, start + length) for start in starts]
    return found


def film_of(shot: Shot) -> Film:
    """Decode a moment, no larger than 240 lines."""
    frames, times_s = [], []
    with av.open(str(shot.path)) as container:
        stream = container.streams.video[0]
        container.seek(int(shot.start_s / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            stamp_s = float(frame.pts * stream.time_base)
            if stamp_s >= shot.end_s:
                break
            if stamp_s < shot.start_s:
                continue
            height = min(frame.height, HEIGHT)
            width = round(frame.width * height / frame.height / 2) * 2
            frames.append(frame.reformat(width, height, "rgb24").to_ndarray())
            times_s.append(stamp_s)
    return Film(frames, 1 / float(np.median(np.diff(times_s))))


def options(**changes: str) -> Change:
    """Only encoded another way."""
    return lambda film, _: Film(film.frames, film.fps, options=(*changes.items(), ("preset", "veryfast")))


def coded(codec: str, suffix: str, bits: str) -> Change:
    """With another codec."""
    return lambda film, _: Film(film.frames, film.fps, codec, suffix, (("b", bits),))


def scaled(factor: float) -> Change:
    """Smaller pictures."""

    def change(film: Film, _: np.random.Generator) -> Film:
        height, width = (round(side * factor) for side in film.frames[0].shape[:2])
        cv2 = opencv()
        return Film([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in film.frames], film.fps)

    return change


def paced(fps: float) -> Change:
    """Another frame rate: the picture shown at each new time."""

    def change(film: Film, _: np.random.Generator) -> Film:
        times = np.arange(0, len(film.frames) / film.fps - 1e-6, 1 / fps)
        return Film([film.frames[min(int(t * film.fps + 1e-6), len(film.frames) - 1)] for t in times], fps)

    return change


def trimmed(share: float) -> Change:
    """So much of the time cut off, at the start and the end as chance has it."""

    def change(film: Film, rng: np.random.Generator) -> Film:
        count = max(2, round(len(film.frames) * (1 - share)))
        start = int(rng.integers(0, len(film.frames) - count + 1))
        return Film(film.frames[start : start + count], film.fps)

    return change


def cropped(share: float, centred: bool) -> Change:
    """So much of width and height cut off, evenly or as chance has it."""

    def change(film: Film, rng: np.random.Generator) -> Film:
        height, width = film.frames[0].shape[:2]
        top, left = (share / 2, share / 2) if centred else rng.uniform(0, share, 2)
        rows = slice(round(top * height), round((top + 1 - share) * height))
        columns = slice(round(left * width), round((left + 1 - share) * width))
        return Film([frame[rows, columns] for frame in film.frames], film.fps)

    return change


def bordered(vertical: float, horizontal: float) -> Change:
    """Black borders, in shares of height and width."""

    def change(film: Film, _: np.random.Generator) -> Film:
        height, width = film.frames[0].shape[:2]
        by = ((round(vertical * height),) * 2, (round(horizontal * width),) * 2, (0, 0))
        return Film([np.pad(frame, by) for frame in film.frames], film.fps)

    return change


def brightened(film: Film, _: np.random.Generator) -> Film:
    """Less contrast, more light."""
    return Film([(frame * 0.65 + 60).astype(np.uint8) for frame in film.frames], film.fps)


def mirrored(film: Film, _: np.random.Generator) -> Film:
    """Left is right."""
    return Film([frame[:, ::-1] for frame in film.frames], film.fps)


def chain(*changes: Change) -> Change:
    """One after the other."""

    def change(film: Film, rng: np.random.Generator) -> Film:
        for each in changes:
            film = each(film, rng)
        return film

    return change


#: Name -> change, and what a report must say of it.
CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "H.264, crf 28": (options(crf="28"), ()),
    "H.264, crf 36": (options(crf="36"), ()),
    "H.264, crf 42": (options(crf="42"), ()),
    "MPEG-4, 300 kbit/s": (coded("mpeg4", ".avi", "300k"), ()),
    "VP8, 300 kbit/s": (coded("libvpx", ".webm", "300k"), ()),
    "half the size": (scaled(0.5), ()),
    "15 frames/s": (paced(15), ()),
    "10 frames/s": (paced(10), ()),
    "brightness": (brightened, ()),
    "trimmed by 10 %": (trimmed(0.1), ()),
    "trimmed by 30 %": (trimmed(0.3), ("trimmed",)),
    "trimmed by 50 %": (trimmed(0.5), ("trimmed",)),
    "trimmed by 70 %": (trimmed(0.7), ("trimmed",)),
    "trimmed by 30 %, half the size, 12 frames/s": (chain(trimmed(0.3), scaled(0.5), paced(12)), ("trimmed",)),
    "cropped by 5 %": (cropped(0.05, True), ("cropped",)),
    "cropped by 10 %": (cropped(0.1, True), ("cropped",)),
    "cropped by 10 %, off centre": (cropped(0.1, False), ("cropped",)),
    "cropped by 10 %, trimmed by 30 %": (chain(cropped(0.1, False), trimmed(0.3)), ("cropped", "trimmed")),
    "borders above and below": (bordered(0.16, 0), ("bordered",)),
    "borders left and right": (bordered(0, 0.16), ("bordered",)),
    "borders, trimmed by 30 %": (chain(bordered(0.16, 0), trimmed(0.3)), ("bordered", "trimmed")),
    "mirrored": (mirrored, ("mirrored",)),
    "mirrored, trimmed by 30 %": (chain(mirrored, trimmed(0.3)), ("mirrored", "trimmed")),
}


@dataclass(frozen=True, slots=True)
class Made:
    """A file of the benchmark: its shot's number, and what was done to it ("" for an original)."""

    shot: int
    change: str
    path: Path


def write(film: Film, path: Path) -> Path:
    """Encode with even sides; the original's crf is 20, a copy's its own."""
    height, width = (side // 2 * 2 for side in film.frames[0].shape[:2])
    even = [frame[:height, :width] for frame in film.frames]
    times_s = (np.arange(len(even)) / film.fps).tolist() if film.suffix == ".mp4" else None
    return encode(path.with_suffix(film.suffix), even, codec=film.codec, fps=round(film.fps), times_s=times_s,
                  options=dict(film.options))  # fmt: skip


def make(found: Sequence[Shot], originals: int, folder: Path) -> list[Made]:
    """Write all originals, and every copy of some of them."""
    rng = np.random.default_rng(0)
    by_kind = [
        [i for i, shot in enumerate(found) if shot.kind == kind] for kind in dict.fromkeys(s.kind for s in found)
    ]
    shares = [originals // 2, originals // 6, originals // 3]
    copied = {
        i for places, n in zip(by_kind, shares, strict=True) for i in rng.choice(places, n, replace=False).tolist()
    }
    made = []
    for number, shot in enumerate(track(found, "make")):
        film = film_of(shot)
        if len(film.frames) < 8:
            continue
        original = Film(film.frames, film.fps, options=(("crf", "20"), ("preset", "veryfast")))
        made.append(Made(number, "", write(original, folder / f"{number:05d}")))
        for place, (name, (change, _)) in enumerate(CHANGES.items() if number in copied else ()):
            made.append(Made(number, name, write(change(film, rng), folder / f"{number:05d}-{place:02d}")))
    return made


def share_a_moment(one: Shot, two: Shot) -> bool:
    """Whether two shots overlap."""
    return one.path == two.path and max(one.start_s, two.start_s) < min(one.end_s, two.end_s)


def reported(made: Sequence[Made], workers: int) -> list[tuple[Made, Made, set[str], str]]:
    """What the check says: two files, how one was made of the other, and the words."""
    named = {str(one.path): one for one in made}
    clips = tuple(Clip(one.path, "clip", "train", str(number)) for number, one in enumerate(made))
    report = check(Dataset(made[0].path.parent, ("clip",), clips), 10, 2, workers, mirrored=True)
    found = []
    for problem in report.problems:
        if problem.kind != "near-duplicate":
            note(problem.text)
            continue
        kinds = {kind for kind in ("trimmed", "cropped", "bordered", "mirrored")
                 if problem.relation and getattr(problem.relation, kind)}  # fmt: skip
        kinds |= {"mirrored"} if "mirrored" in problem.text else set()
        found.append((named[problem.clips[0]], named[problem.clips[1]], kinds, problem.text.partition(": ")[2]))
    return found


def rows_of(made: Sequence[Made], found: Sequence[tuple[Made, Made, set[str], str]], all_shots: Sequence[Shot]
            ) -> tuple[list[list[Any]], list[str]]:  # fmt: skip
    """A line for each change, and the false alarms."""
    wrong = [pair for pair in found if not share_a_moment(all_shots[pair[0].shot], all_shots[pair[1].shot])]
    rows: list[list[Any]] = []
    for name, (_, kinds) in CHANGES.items():
        copies = [one for one in made if one.change == name]
        right = [
            pair for pair in found if pair[0].shot == pair[1].shot and {pair[0].change, pair[1].change} == {"", name}
        ]
        told = sum(set(kinds) <= pair[2] for pair in right)
        false = sum(name in (pair[0].change, pair[1].change) for pair in wrong)
        by_kind = []
        for kind in dict.fromkeys(shot.kind for shot in all_shots):
            of_kind = [one for one in copies if all_shots[one.shot].kind == kind]
            hits = sum(all_shots[pair[0].shot].kind == kind for pair in right)
            by_kind.append(f"{hits}/{len(of_kind)}")
        rows.append([name, f"**{len(right) / max(len(copies), 1):.0%}**", *by_kind,
                     f"{told}/{len(right)}" if kinds and right else "", false,
                     f"{len(right) / (len(right) + false):.1%}" if right or false else ""])  # fmt: skip
    words = [f"{all_shots[a.shot].path.name} {all_shots[a.shot].start_s:g} {a.change} ~ {all_shots[b.shot].path.name} "
             f"{all_shots[b.shot].start_s:g} {b.change}: {text}" for a, b, _, text in wrong]  # fmt: skip
    return rows, words


def negatives(made: Sequence[Made], found: Sequence[tuple[Made, Made, set[str], str]], all_shots: Sequence[Shot]
              ) -> list[tuple[str, int, int]]:  # fmt: skip
    """(kind, pairs of originals before one camera that share no moment, false alarms among them)."""
    result = []
    for kind in dict.fromkeys(shot.kind for shot in all_shots):
        own = [all_shots[one.shot] for one in made if not one.change and all_shots[one.shot].kind == kind]
        pairs = sum(a.camera == b.camera and not share_a_moment(a, b) for a, b in itertools.combinations(own, 2))
        shown = [(all_shots[a.shot], all_shots[b.shot]) for a, b, _, _ in found if not a.change and not b.change]
        result.append((kind, pairs, sum(a.kind == kind and not share_a_moment(a, b) for a, b in shown)))
    return result


def decode(paths: Sequence[Path]) -> None:
    """Decode and do nothing."""
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass


def speeds(made: Sequence[Made], rounds: int) -> dict[str, list[float]]:
    """Processor seconds on the originals."""
    paths = [one.path for one in made if not one.change][::3]
    data = Dataset(paths[0].parent, ("clip",), tuple(Clip(path, "clip", "train", path.stem) for path in paths))
    return cpu_seconds({
        "decode": lambda: decode(paths),
        "check, no near copies": lambda: check(data, 10, 2, 1, 0.0),
        "check": lambda: check(data, 10, 2, 1),
        "check, mirrored": lambda: check(data, 10, 2, 1, mirrored=True),
    }, rounds)  # fmt: skip


def drawn(rng: np.random.Generator) -> Trace:
    """A made-up clip of 5 s: a blurred spot of its own size walks through a picture of its own."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    start, speed, size = rng.uniform(4, 28, 2), rng.normal(0, 0.5, 2), rng.uniform(2, 5)
    steps = np.cumsum(speed + rng.normal(0, 0.4, (40, 2)), 0) + start
    spots = np.stack([np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * size**2)) for a, b in steps])
    still = opencv().GaussianBlur(rng.normal(0, 60, (SIDE, SIDE)).astype(np.float32), (0, 0), 3)
    return Trace(still, np.rint(spots * 127).astype(np.int8), 0.6, (0, 0, 0, 0))


def growth(counts: Sequence[int]) -> dict[int, float]:
    """Processor seconds to compare so many made-up clips of 5 s."""
    rng, found = np.random.default_rng(0), {}
    for count in counts:
        traces = [drawn(rng) for _ in range(count)]
        begin = time.process_time()
        relations(traces)
        found[count] = time.process_time() - begin
    return found


def main() -> None:
    """Run, print, and write the result of the held-out part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--part", choices=list(FOLDS), default="held")
    parser.add_argument("--originals", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    all_shots = shots(args.data, args.part)
    with tempfile.TemporaryDirectory() as folder:
        made = make(all_shots, args.originals, Path(folder))
        found = reported(made, args.workers)
        rows, words = rows_of(made, found, all_shots)
        hard = negatives(made, found, all_shots)
        print(*rows, *words, hard, sep="\n", flush=True)
        seconds = speeds(made, args.rounds) if args.rounds else {}
        print({name: round(float(np.median(values)), 2) for name, values in seconds.items()}, flush=True)
    if args.part != "held" or not seconds:
        return
    ratio = {name: float(np.median(np.divide(values, seconds["decode"]))) for name, values in seconds.items()}
    grown = growth((500, 1000, 2000, 4000))
    columns = ["copies", "found", *dict.fromkeys(shot.kind for shot in all_shots), "told what was done", "wrong pairs",
               "precision"]  # fmt: skip
    caption = (
        f"{len({one.shot for one in made})} originals, {args.originals} of them copied in each way. False alarms "
        "between originals before one camera: "
        + "; ".join(f"{kind} {false} in {pairs} pairs" for kind, pairs, false in hard)
        + ". Processor time as a multiple of decoding alone: "
        + ", ".join(f"{name} {value:.2f}" for name, value in ratio.items() if name != "decode")
        + ". Comparing made-up clips of 5 s: " + ", ".join(f"{count} in {s:.1f} s" for count, s in grown.items()) + "."
    )  # fmt: skip
    print(save("near_duplicates", caption, columns, rows, {
        "wrong": words, "seconds": seconds, "growth": grown, "negatives": hard, "part": args.part,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
