"""B streams shared among threads that each step a session of their own: what a machine with several cores does best.

A file that takes one stream at a time does not gain from a second thread inside its small step; two halves of the
streams on two threads do. Of the processor's runtimes this is LiteRT (``benchmarks/batching.py``); ONNX Runtime does as
well with one batch, and OpenVINO, whose sessions share one pool of threads, far better.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np

from deploy.runtimes.base import Options, StepSession, Streams
from toolkit.contract import Array

__all__ = ["LaneSession", "lanes_of"]

_GAIN = ("litert",)


def lanes_of(options: Options, runtime: str, cores: int) -> list[Options]:
    """The options of each lane; a single one where the streams are not shared.

    >>> [lane.batch for lane in lanes_of(Options(batch=5, lanes=2), "litert", cores=8)]
    [3, 2]
    """
    usual = (options.threads or cores) if runtime in _GAIN and options.hint == "throughput" else 1
    count = min(options.batch, options.lanes or usual)
    if count == 1:
        return [options]
    parts = [len(part) for part in np.array_split(np.arange(options.batch), count)]
    threads = max(1, (options.threads or cores) // count)
    return [replace(options, batch=part, threads=threads, lanes=1) for part in parts]


class LaneSession(StepSession):
    """Streams 0, 1, ... belong to the first session, those after them to the next, and so on."""

    def __init__(self, open_one: Callable[[Options], Streams], lanes: Sequence[Options]) -> None:
        with ExitStack() as opened:  # if a later one cannot be opened, those before it are closed
            self._sessions = [opened.enter_context(closing(open_one(lane))) for lane in lanes]
            opened.pop_all()
        first = self._sessions[0]
        placement = first.placement()
        detail = {**placement.detail, "lanes": str(len(lanes))}
        threads = sum(lane.threads or 1 for lane in lanes)
        super().__init__(
            first.contract, placement.model_copy(update={"threads": threads, "detail": detail}),
            sum(lane.batch for lane in lanes),
        )  # fmt: skip
        self._ends = np.cumsum([lane.batch for lane in lanes])[:-1]
        self._pool = ThreadPoolExecutor(len(lanes) - 1, "lane")

    def _run(self, frame_BCHW: Array) -> Array:
        parts = np.split(frame_BCHW, self._ends)
        others = [
            self._pool.submit(session.step, part) for session, part in zip(self._sessions[1:], parts[1:], strict=True)
        ]
        answers = [self._sessions[0].step(parts[0])]
        return np.concatenate([*answers, *(other.result() for other in others)])

    def _forget(self) -> None:
        for session in self._sessions:
            session.reset()

    def _forget_one(self, stream: int) -> None:
        lane = int(np.searchsorted(self._ends, stream, side="right"))
        self._sessions[lane].reset(stream - (int(self._ends[lane - 1]) if lane else 0))

    def _free(self) -> None:
        self._pool.shutdown()
        for session in self._sessions:
            session.close()
