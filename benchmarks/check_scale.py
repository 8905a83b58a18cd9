"""What ``vidon data check`` costs for tens of thousands of videos: decoding apart from comparing, memory, disk.

    python -m benchmarks.check_scale [--data ../shared/data] [--counts 1000 2000 4000] [--videos 300000]

Decoding is measured on real footage of 240 lines, and taken for 25 frames a second. Comparing is measured on made-up
videos of 10 s of two kinds: *varied* ones (a camera pans over a picture of its own while two spots walk through it) and
*alike* ones (one spot before a still picture: nearly all moments of all videos agree, the worst case for what proposes
alignments). Of these half as many are made. None is a copy of another. Each count runs in a process of its own, whose
peak of memory is read; fingerprints lie in a file, as in the command. The last rows are estimated: decoding by the
number of videos, the comparison of looks, which is of all pairs, by its square, that of parts by its growth between the
two largest counts.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, save
from benchmarks.near_duplicates import HEIGHT, Film, Shot, film_of, shots, write
from toolkit.cv import opencv
from toolkit.progress import quiet
from train.data.clip import Clip
from train.data.examine import Seen, examine
from train.data.fingerprints import Fingerprints
from train.data.likeness import Look, look_of, pairs
from train.data.relations import relations
from train.data.trace import SIDE, STEP_S, Trace

SECONDS, FPS = 10.0, 25
KINDS = ("varied", "alike")
_CELLS = round(SECONDS / STEP_S)
Float = npt.NDArray[np.float32]


def spots(rng: np.random.Generator, count: int, size: tuple[float, float]) -> Float:
    """Blurred spots that walk about: (T, S, S) from 0 to 1."""
    total = np.zeros((_CELLS, SIDE, SIDE), np.float32)
    for _ in range(count):
        width, speed = rng.uniform(*size), rng.normal(0, 0.3, 2)
        path = np.cumsum(speed + rng.normal(0, 0.4, (_CELLS, 2)), 0) + rng.uniform(4, 28, 2)
        path = np.abs((path + SIDE) % (2 * SIDE) - SIDE)  # they turn back at the edges
        rows, columns = np.exp(-((np.arange(SIDE) - path[..., None]) ** 2) / (2 * width**2)).transpose(1, 0, 2)
        total += np.asarray(rows[:, :, None] * columns[:, None, :], np.float32)
    return total


def made(rng: np.random.Generator, kind: str) -> Seen:
    """The look and the trace of one made-up video."""
    cv2 = opencv()
    if kind == "alike":
        still = cv2.GaussianBlur(rng.normal(110, 60, (SIDE, SIDE)).astype(np.float32), (0, 0), 3)
        cells = still + 76 * spots(rng, 1, (2, 5))
    else:
        view = cv2.GaussianBlur(rng.normal(110, 260, (96, 96)).astype(np.float32), (0, 0), 2.5)
        at = np.cumsum(np.cumsum(rng.normal(0, 0.05, (_CELLS, 2)), 0), 0) % 60
        crops = [cv2.warpAffine(view, np.asarray([[1, 0, -b], [0, 1, -a]], np.float32), (SIDE, SIDE),
                                borderMode=cv2.BORDER_REFLECT) for a, b in at]  # fmt: skip
        cells = np.stack(crops) + rng.uniform(-90, 90) * spots(rng, 2, (1, 4))
    cells = cells.clip(0, 255).astype(np.float32)
    mean = cells.mean(0)
    scale = max(float(np.abs(cells - mean).max()), 1.0) / 127
    trace = Trace(mean, np.rint((cells - mean) / scale).astype(np.int8), scale, (0, 0, 0, 0))
    return Seen(_CELLS, _CELLS, "", "", look_of(np.rint(cells).astype(np.uint8), np.arange(_CELLS) * STEP_S), trace)


def compare(kind: str, count: int) -> dict[str, float]:
    """Processor seconds of both comparisons of so many videos, peak of memory above what it was before, disk."""
    rng, looks = np.random.default_rng(0), list[Look | None]()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        with Fingerprints.open(Path(folder)) as known:
            begin_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            keys = [str(number) for number in range(count)]
            for key in keys:
                looks.append(known.put(key, made(rng, kind)).look)
            begin = time.process_time()
            near = pairs(looks)
            middle = time.process_time()
            related = relations(known.traces(keys))
            end = time.process_time()
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "looks_s": middle - begin, "relations_s": end - middle, "found": len(near) + len(related),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - begin_mb, "disk_kb": disk / count / 1e3,
    }  # fmt: skip


def decoding(data: Path) -> dict[str, list[float]]:
    """Processor seconds a frame to look at real videos, with and without what copies are found by."""
    found_shots = [shot for shot in shots(data, "held") if shot.kind == "surveillance"][:12]
    path = data / "intel_sample_videos" / "one-by-one-person-detection.mp4"
    found_shots += [Shot("", "", path, begin, begin + SECONDS) for begin in range(0, 60, 10)]
    found: dict[str, list[float]] = {"with looks": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for number, shot in enumerate(found_shots):
            film = film_of(shot)
            options = (("crf", "23"), ("preset", "veryfast"))
            clip = Clip(write(Film(film.frames, film.fps, options=options), Path(folder) / str(number)), "", "", "")
            for name, looks in (("with looks", True), ("without", False)):
                begin = time.process_time()
                examine(clip, 10, looks)
                found[name].append((time.process_time() - begin) / len(film.frames))
    return found


def estimated(per_video: float, rows: dict[int, dict[str, float]], videos: int) -> dict[str, float]:
    """Hours on one core for so many videos, from the two largest counts that were measured."""
    fewer, count = sorted(rows)[-2:]
    most, power = rows[count], math.log(rows[count]["relations_s"] / rows[fewer]["relations_s"], count / fewer)
    return {
        "decode_h": per_video * videos / 3600,
        "looks_h": most["looks_s"] * (videos / count) ** 2 / 3600,
        "relations_h": most["relations_s"] * (videos / count) ** power / 3600,
        "power": power,
    }  # fmt: skip


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--videos", type=int, default=300_000)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compare(args.one[0], int(args.one[1]))))
        return
    seconds = decoding(args.data)
    per_video, plain = (float(np.mean(seconds[name])) * SECONDS * FPS for name in ("with looks", "without"))
    print(seconds, flush=True)
    measured: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
    table: list[list[Any]] = []
    for kind in KINDS:
        for count in args.counts if kind == "varied" else [count // 2 for count in args.counts]:
            words = [sys.executable, "-P", "-m", "benchmarks.check_scale", "--one", kind, str(count)]
            done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
            one = measured[kind][count] = json.loads(done.stdout)
            total = one["looks_s"] + one["relations_s"]
            table.append([kind, f"{count:,}", f"{one['looks_s']:.1f} s", f"{one['relations_s']:.1f} s",
                          f"{1e3 * total / count:.1f} ms", f"{total / (per_video * count):.1%}",
                          f"{one['peak_mb']:.0f} MB", int(one["found"])])  # fmt: skip
            print(table[-1], flush=True)
    far = {kind: estimated(per_video, measured[kind], args.videos) for kind in KINDS}
    for kind, hours in far.items():
        total_h = hours["looks_h"] + hours["relations_h"]
        table.append([f"{kind}, estimated", f"{args.videos:,}", f"{hours['looks_h']:.2f} h",
                      f"{hours['relations_h']:.2f} h", f"{3.6e6 * total_h / args.videos:.1f} ms",
                      f"{total_h / hours['decode_h']:.1%}", "", ""])  # fmt: skip
    fewer, most = sorted(args.counts)[-2:]
    kept = (measured["varied"][most]["peak_mb"] - measured["varied"][fewer]["peak_mb"]) / (most - fewer)
    disk = max(one["disk_kb"] for rows in measured.values() for one in rows.values())
    caption = (
        f"Made-up videos of {SECONDS:g} s, none a copy; processor time of one core. Decoding real footage of {HEIGHT} "
        f"lines, fingerprints and all, takes {1e3 * per_video / SECONDS / FPS:.2f} ms a frame, so a video of "
        f"{SECONDS * FPS:g} frames {per_video:.2f} s ({plain:.2f} s without looking for copies), and {args.videos:,} "
        f"take {far['varied']['decode_h']:.0f} hours of one core (estimated). Comparing parts grows by the power "
        f"{far['varied']['power']:.2f} of the count ({far['alike']['power']:.2f} in the worst case). Memory grows by "
        f"{kept * 1e3:.0f} KB a video, the cache by {disk:.0f} KB."
    )  # fmt: skip
    columns = ["videos", "count", "whole clips (looks)", "parts (relations)", "comparing, a video", "of decoding",
               "memory", "false alarms"]  # fmt: skip
    print(save("check_scale", caption, columns, table, {
        "decode_s": seconds, "compare": measured, "estimated_h": far, "memory_kb_a_video": kept * 1e3, "disk_kb": disk,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
