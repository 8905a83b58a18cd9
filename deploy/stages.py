"""How long each stage of the camera loop takes, over the newest frames: memory stays level however long it runs."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

__all__ = ["KEPT", "STAGES", "StageClock", "StageTiming"]

STAGES = ("capture", "preprocess", "infer", "postprocess", "draw", "output")
#: Newest samples of each stage that the percentiles are taken from.
KEPT = 20_000
_SHOWN = 15


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Milliseconds of one stage over ``count`` runs."""

    p50_ms: float
    p95_ms: float
    mean_ms: float
    count: int


class StageClock:
    """Samples of every stage, in milliseconds."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - start) * 1000)

    def add(self, stage: str, sample_ms: float) -> None:
        """Take in a time that was measured elsewhere."""
        self._samples.setdefault(stage, deque(maxlen=KEPT)).append(sample_ms)

    def recent(self) -> dict[str, float]:
        """Mean of the last few samples of each stage: what the overlay shows."""
        shown = {stage: list(islice(reversed(samples), _SHOWN)) for stage, samples in self._samples.items()}
        return {stage: float(np.mean(samples)) for stage, samples in shown.items()}

    def last(self, stage: str) -> float:
        """The newest sample; 0 before the first."""
        samples = self._samples.get(stage)
        return samples[-1] if samples else 0.0

    def table(self) -> dict[str, StageTiming]:
        """Each stage that was run, and for live sources the whole ``latency``."""
        found = {}
        for stage in (*STAGES, "latency"):
            samples = np.asarray(self._samples.get(stage, ()))
            if samples.size:
                p50, p95 = np.percentile(samples, (50, 95))
                found[stage] = StageTiming(
                    round(float(p50), 3), round(float(p95), 3), round(float(samples.mean()), 3), int(samples.size)
                )
        return found
