"""Loader throughput against bare PyAV decoding of the same files by the same number of worker processes.

    python benchmarks/loader.py [--data ../shared/data/surv_fight/labels.csv] [--workers 1 2] [--rounds 5]

Bare: each worker opens its files and decodes every frame with one thread, without doing anything with it, or turning
each into an RGB array. Loader: the training loop's own feed of a decoding source; every file once an epoch, as the
whole clip (every frame the pictures need is decoded, 10 pictures a second are converted, scaled, batched and sent to
the parent) or as a window of 16 pictures. All take turns, for an epoch each, and are warm: processes are running, files
are in the page cache, an epoch was read before. A loader's clock starts when the batches it has ready are taken, so
nothing is counted that was done before; nobody's workers run while another one's clock does. The parent only receives.
"""

import argparse
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

BATCH, PORTION = 8, 2
WAYS = ("bare, decode only", "bare, decode to RGB", "loader, whole clips", "loader, 16 pictures")
#: What a way of loading gave: files a second, frames of the files a second, processor milliseconds a file.
Sample = tuple[float, float, float]


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


def settle() -> None:
    """Wait until all workers are idle: those of a loader go on until enough batches are ready."""
    before = worker_cpu_s(os.getpid())
    while time.sleep(0.15) or (now := worker_cpu_s(os.getpid())) != before:
        before = now


def measured(work: Callable[[], object], files: int, frames: float) -> Sample:
    """Time ``work``, which reads ``files`` files of so many ``frames`` each in the mean."""
    before, own_s, started_s = worker_cpu_s(os.getpid()), time.process_time(), time.perf_counter()
    work()
    wall_s, own_s = time.perf_counter() - started_s, time.process_time() - own_s
    after = worker_cpu_s(os.getpid())
    cpu_s = own_s + sum(seconds - before.get(number, 0.0) for number, seconds in after.items())
    return files / wall_s, files * frames / wall_s, 1e3 * cpu_s / files


class Bare:
    """A pool of processes that decode; small portions keep all of them busy to the end."""

    def __init__(self, paths: list[str], workers: int) -> None:
        self._paths, self._parts = paths, [paths[at : at + PORTION] for at in range(0, len(paths), PORTION)]
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))
        self.frames = sum(self._pool.map(bare, self._parts, [True] * len(self._parts))) / len(paths)

    def rate(self, convert: bool) -> Sample:
        """Decode all files once."""
        settle()
        work = lambda: list(self._pool.map(bare, self._parts, [convert] * len(self._parts)))  # noqa: E731
        return measured(work, len(self._paths), self.frames)

    def close(self) -> None:
        """Stop the processes."""
        self._pool.shutdown()


class Loader:
    """The training loop's feed of clips of ``length`` pictures."""

    def __init__(self, data: Dataset, length: int, workers: int, rounds: int) -> None:
        source = VideoSource(data, "train", Preprocess(), length)
        order = Order(len(source), BATCH, 4 + 2 * rounds, 0, 1, 1, 0)
        self._feed, self._steps = Feed(source, order, 0, 1, workers, torch.device("cpu")), order.per_epoch
        self._ready = 4 * workers
        for _ in range(2 * self._steps):
            self._feed.next()

    def rate(self, frames: float) -> Sample:
        """An epoch, after the batches that are ready were taken."""
        settle()
        for _ in range(self._ready):
            self._feed.next()
        return measured(self._epoch, self._steps * BATCH, frames)

    def _epoch(self) -> None:
        for _ in range(self._steps):  # no batch is kept, as training keeps none
            self._feed.next()

    def close(self) -> None:
        """Stop the processes."""
        self._feed.close()


def compared(data: Dataset, workers: int, rounds: int) -> dict[str, list[Sample]]:
    """All ways in turn."""
    pool = Bare([str(clip.path) for clip in data.clips], workers)
    loaders = [Loader(data, length, workers, rounds) for length in (50, 16)]
    rates: dict[str, list[Sample]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        rates[WAYS[0]].append(pool.rate(False))
        rates[WAYS[1]].append(pool.rate(True))
        for name, loader in zip(WAYS[2:], loaders, strict=True):
            rates[name].append(loader.rate(pool.frames))
    for each in (pool, *loaders):
        each.close()
    return rates


def row_of(workers: int, name: str, rates: dict[str, list[Sample]]) -> list[object]:
    """The line of one way: medians, and the median of each round's ratio by the clock."""
    files, frames, cpu = (float(np.median(values)) for values in zip(*rates[name], strict=True))
    against = [
        f"{np.median([own[0] / other[0] for own, other in zip(rates[name], rates[base], strict=True)]):.0%}"
        for base in WAYS[:2]
    ]
    cpu_base = float(np.median([sample[2] for sample in rates[WAYS[0]]]))
    return [workers, name, f"{files:.0f}", f"{frames:.0f}", f"**{against[0]}**", against[1], f"{cpu:.1f}",
            f"{cpu_base / cpu:.0%}"]  # fmt: skip


def main() -> None:
    """Run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / "surv_fight" / "labels.csv"
    parser.add_argument("--data", type=Path, default=root)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    data = index_clips(args.data)
    data = Dataset(data.root, data.labels, data.split("train"))
    rows, raw = [], {}
    for workers in args.workers:
        rates = compared(data, workers, args.rounds)
        rows += [row_of(workers, name, rates) for name in WAYS]
        print(*rows[-len(WAYS) :], sep="\n", flush=True)
        raw[str(workers)] = rates
    columns = ["workers", "", "files/s", "frames/s", "of decode only", "of decode to RGB", "CPU ms/file",
               "of decode only"]  # fmt: skip
    caption = (
        f"{len(data.clips)} videos of 1 to 5 s, 298x224, H.264; {args.rounds} interleaved rounds, medians, by the "
        f"clock; CPU time is of all workers and the parent. Load average at the end {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores."
    )
    print(save("loader", caption, columns, rows, {"rates": raw, "files": len(data.clips), "batch": BATCH}))


if __name__ == "__main__":
    main()
