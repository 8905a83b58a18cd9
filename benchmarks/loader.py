"""Loader throughput against bare PyAV decoding of the same files by the same number of worker processes.

    python benchmarks/loader.py [--data ../shared/data/surv_fight/labels.csv] [--workers 1 2] [--rounds 5]

Bare: each worker opens its files and decodes every frame with one thread, without doing anything with it, or turning
each into an RGB array. Loader: the training loop's own feed of a decoding source; every file once an epoch, as the
whole clip (every frame is decoded, 10 pictures a second are converted, scaled, batched and sent to the parent) or as a
window of 16 pictures. Both take turns in one run and are warm: processes are running, files are in the page cache.
On a busy machine read the processor time a file, which other programs do not change, not the clock.
"""

import argparse
import dataclasses
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


def worker_cpu_s(parent: int) -> dict[int, float]:
    """Processor seconds of every process below ``parent`` (Linux)."""
    ticks, found = os.sysconf("SC_CLK_TCK"), {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(values[1]) == parent:
            number = int(place.parent.name)
            found |= {number: (int(values[11]) + int(values[12])) / ticks, **worker_cpu_s(number)}
    return found


def measured(work: Callable[[], object], files: float) -> tuple[float, float]:
    """(files a second, processor milliseconds a file of this process and its workers)."""
    before, own_s, started_s = worker_cpu_s(os.getpid()), time.process_time(), time.perf_counter()
    work()
    wall_s, own_s = time.perf_counter() - started_s, time.process_time() - own_s
    after = worker_cpu_s(os.getpid())
    return files / wall_s, 1e3 * (own_s + sum(s - before.get(n, 0.0) for n, s in after.items())) / files


def bare_rate(paths: list[str], convert: bool, pool: ProcessPoolExecutor) -> tuple[float, float]:
    """Decode all files; small portions keep all workers busy to the end."""
    parts = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)] * EPOCHS
    return measured(lambda: list(pool.map(bare, parts, [convert] * len(parts))), EPOCHS * len(paths))


def loader_rate(data: Dataset, frames: int, workers: int) -> tuple[float, float]:
    """After a first epoch, in which the timelines are read; the workers are as far ahead at the end as at the start."""
    source = VideoSource(data, "train", Preprocess(), frames)
    order = Order(len(source), BATCH, 3 + EPOCHS, 0, 1, 1, 0)
    feed = Feed(source, order, 0, 1, workers, torch.device("cpu"))
    for _ in range(order.per_epoch):
        feed.next()
    steps = EPOCHS * order.per_epoch
    found = measured(lambda: [feed.next() for _ in range(steps)], steps * BATCH)
    feed.close()
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
    rows, raw = [], {}
    for workers in args.workers:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            bare_rate(paths, True, pool)
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
            for _ in range(args.rounds):
                rates[WAYS[0]].append(bare_rate(paths, False, pool))
                rates[WAYS[1]].append(bare_rate(paths, True, pool))
                rates[WAYS[2]].append(loader_rate(data, 50, workers))
                rates[WAYS[3]].append(loader_rate(data, 16, workers))
        base = [float(np.median([cpu for _, cpu in rates[name]])) for name in WAYS[:2]]
        for name, found in rates.items():
            rate, cpu = (float(np.median(values)) for values in zip(*found, strict=True))
            against = float(np.median([a / b for (a, _), (b, _) in zip(found, rates[WAYS[1]], strict=True)]))
            rows.append([workers, name, f"{cpu:.1f}", f"{base[0] / cpu:.0%}", f"**{base[1] / cpu:.0%}**",
                         f"{rate:.0f}", f"{against:.0%}"])  # fmt: skip
            print(rows[-1], flush=True)
        raw[str(workers)] = rates
    columns = ["workers", "", "CPU ms/file", "of decode only", "of decode to RGB", "files/s by the clock",
               "of decode to RGB by the clock"]  # fmt: skip
    caption = (
        f"{len(paths)} videos of 1 to 5 s, 298x224, H.264; {args.rounds} interleaved rounds. CPU time is of all "
        f"workers and the parent; the clock also sees what else runs here (load average {os.getloadavg()[0]:.0f})."
    )
    print(save("loader", caption, columns, rows, {"rates": raw, "files": len(paths), "batch": BATCH}))


if __name__ == "__main__":
    main()
