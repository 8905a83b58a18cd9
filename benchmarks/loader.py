"""Loader throughput against bare PyAV decoding of the same files by the same number of worker processes.

    python benchmarks/loader.py [--data ../shared/data/surv_fight/labels.csv] [--workers 1 2] [--rounds 5]

Bare: each worker opens its files and decodes every frame with one thread, without doing anything with it, or turning
each into an RGB array. Loader: the training loop's own feed of a decoding source; every file once an epoch, as the
whole clip (every frame is decoded, 10 pictures a second are converted, scaled, batched and sent to the parent) or as a
window of 16 pictures. Both take turns in one run and are warm: processes are running, files are in the page cache.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.common import save
from toolkit.cv import opencv
from toolkit.preprocess import Preprocess
from train.data.index import Dataset, index_clips
from train.data.videos import VideoSource
from train.loop.feed import Feed, Order

BATCH, EPOCHS = 8, 2
WAYS = ("bare, decode only", "bare, decode to RGB", "loader, whole clips", "loader, 16 pictures")


def bare(paths: list[str], convert: bool) -> int:
    """Decode whole files; the number of frames."""
    count = 0
    for path in paths:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if convert:
                    frame.to_ndarray(format="rgb24")
                count += 1
    return count


def bare_rate(paths: list[str], workers: int, convert: bool, pool: ProcessPoolExecutor) -> float:
    """Files a second; small portions keep all workers busy to the end."""
    parts = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)] * EPOCHS
    started_s = time.perf_counter()
    list(pool.map(bare, parts, [convert] * len(parts)))
    return EPOCHS * len(paths) / (time.perf_counter() - started_s)


def loader_rate(data: Dataset, frames: int, workers: int) -> tuple[float, float]:
    """Files a second: in the first epoch (the timelines are read too) and after it.

    When the clock starts, each worker is somewhere in a batch: half a batch each is not counted.
    """
    source = VideoSource(data, "train", Preprocess(), frames)
    order = Order(len(source), BATCH, 1 + EPOCHS, 0, 1, 1, 0)
    feed = Feed(source, order, 0, 1, workers, torch.device("cpu"))
    feed.next()
    rates = []
    for steps in (order.per_epoch - 1, EPOCHS * order.per_epoch):
        started_s = time.perf_counter()
        for _ in range(steps):
            feed.next()
        rates.append((steps - workers / 2) * BATCH / (time.perf_counter() - started_s))
    feed.close()
    return rates[0], rates[1]


def cpu_ms(work: Callable[[], object], files: int) -> float:
    """Processor time a file in this process: what other programs on the machine do does not count."""
    started_s = time.process_time()
    work()
    return 1e3 * (time.process_time() - started_s) / files


def costs(data: Dataset, paths: list[str], frames: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Processor milliseconds a file of each way, in turns; timelines are known."""
    some = list(range(0, len(paths), 2))
    sources = [VideoSource(data, "train", Preprocess(), count) for count in frames]
    ways: list[Callable[[], object]] = [
        lambda: bare([paths[i] for i in some], False),
        lambda: bare([paths[i] for i in some], True),
        *(lambda s=s: [s.batch(some[i : i + BATCH], 0) for i in range(0, len(some), BATCH)] for s in sources),
    ]  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name, way in zip(WAYS, ways, strict=True):
            cost = cpu_ms(way, len(some))
            if turn:
                found[name].append(cost)
    return found


def main() -> None:
    """Run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / "surv_fight" / "labels.csv"
    parser.add_argument("--data", type=Path, default=root)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=3, help="Take every n-th video.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    data = index_clips(args.data)
    data = dataclasses.replace(data, clips=data.split("train")[:: args.every])
    paths = [str(clip.path) for clip in data.clips]
    seconds = 5  # the longest clip
    cpu = costs(data, paths, (10 * seconds, 16), args.rounds)
    rows, raw = [], {}
    for workers in args.workers:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            calls: list[Callable[[], tuple[float, ...]]] = [
                lambda n=workers, p=pool: (bare_rate(paths, n, False, p),),
                lambda n=workers, p=pool: (bare_rate(paths, n, True, p),),
                lambda n=workers: loader_rate(data, 10 * seconds, n),
                lambda n=workers: loader_rate(data, 16, n),
            ]
            ways = dict(zip(WAYS, calls, strict=True))
            bare_rate(paths, workers, True, pool)
            rates: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
            for _ in range(args.rounds):
                for name, way in ways.items():
                    rates[name].append(way())
        for name, found in rates.items():
            against = [np.median([one[-1] / other[0] for one, other in zip(found, rates[base], strict=True)])
                       for base in ("bare, decode only", "bare, decode to RGB")]  # fmt: skip
            first = "" if len(found[0]) == 1 else f"{np.median([one[0] for one in found]):.0f}"
            rate = float(np.median([one[-1] for one in found]))
            cost = f"{np.median(cpu[name]):.1f}"
            rows.append([workers, name, cost, f"{rate:.0f}", first, f"{against[0]:.0%}", f"**{against[1]:.0%}**"])
            print(rows[-1], flush=True)
        raw[str(workers)] = rates
    columns = [
        "workers",
        "",
        "CPU ms/file",
        "files/s",
        "files/s, first epoch",
        "files/s of decode only",
        "files/s of decode to RGB",
    ]
    caption = (
        f"{len(paths)} videos of 1 to 5 s, 298x224, H.264; median of {args.rounds} interleaved rounds and of the "
        f"ratios within a round; load average {os.getloadavg()[0]:.0f}. CPU time is of one process, warm."
    )
    print(save("loader", caption, columns, rows, {"rates": raw, "cpu_ms": cpu, "files": len(paths), "batch": BATCH}))
    print(json.dumps(raw))


if __name__ == "__main__":
    main()
