"""Latency, fairly: every candidate takes its turn in interleaved rounds, so that a machine's drift hits all alike."""

import gc
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.contract import Session
from toolkit.progress import bar

__all__ = ["Latency", "bench", "bench_calls", "peak_rss_mib"]

#: A runtime's worker threads spin for some milliseconds after a step; the next runtime should not have to share a core
#: with them (torch's p95 was fifteen times its median).
REST_S = 0.005


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one call; samples in the order they were taken."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    samples_ms: tuple[float, ...]

    @property
    def p10_ms(self) -> float:
        """The least disturbed tenth: what to compare by on a machine that does other things too."""
        return float(np.percentile(self.samples_ms, 10))

    @property
    def fps(self) -> float:
        """Calls a second at the median."""
        return 1000.0 / self.p50_ms

    def as_dict(self, samples: bool = False) -> dict[str, Any]:
        """Plain data; the raw samples only on request."""
        raw = asdict(self)
        if not samples:
            del raw["samples_ms"]
        return {**raw, "fps": self.fps}


def bench(
    sessions: Mapping[str, Session], steps: int = 200, warmup: int = 20, title: str = "bench"
) -> dict[str, Latency]:
    """Time ``session.step`` of each session on random frames, in rounds of ten steps taken in turn."""
    rng = np.random.default_rng(0)

    def call(session: Session) -> Callable[[], object]:
        frame = rng.standard_normal((1, *session.contract.frame)).astype(np.float32)
        return lambda: session.step(frame)

    calls = {name: call(session) for name, session in sessions.items()}
    return bench_calls(calls, steps, warmup, title, rest_s=REST_S)


def bench_calls(
    calls: Mapping[str, Callable[[], object]], steps: int = 200, warmup: int = 20, title: str = "bench",
    block: int = 10, rest_s: float = 0.0, clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Latency]:  # fmt: skip
    """Time any callables, in rounds of ``block`` calls taken in turn; garbage collection waits.

    ``rest_s`` before each turn lets the other runtimes' worker threads, which spin for a while, fall asleep.
    ``clock`` counts nanoseconds; ``time.process_time_ns`` leaves out what other programs take.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with bar(title, steps) as progress:
            for start in range(0, steps, block):
                count = min(block, steps - start)
                for name, call in calls.items():
                    if rest_s:
                        time.sleep(rest_s)
                    call()  # the first call after another runtime's turn finds cold caches
                    for _ in range(count):
                        begin_ns = clock()
                        call()
                        samples[name].append((clock() - begin_ns) / 1e6)
                progress.advance(count)
    finally:
        if collecting:
            gc.enable()
    return {name: _latency(times) for name, times in samples.items()}


def _latency(times: list[float]) -> Latency:
    p50, p95, p99 = (float(np.percentile(times, q)) for q in (50, 95, 99))
    return Latency(p50, p95, p99, float(np.mean(times)), tuple(times))


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        # Elsewhere; on Linux this figure would start at the parent's.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
