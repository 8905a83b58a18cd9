"""Work on many clips, in processes side by side, with a bar; results come in the order of the clips."""

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from toolkit.errors import UserError
from toolkit.progress import track

__all__ = ["spread"]

T = TypeVar("T")
R = TypeVar("R")
_MOST_AT_ONCE = 16
#: Chunks a worker that are made ready: items may be large, so never all at once, as ``pool.map`` does.
_AHEAD = 4


def spread(work: Callable[[T], R], items: Sequence[T], label: str, workers: int, few: int) -> Iterator[R]:
    """``work`` of each; fewer than ``few`` are not worth processes. ``work`` and items must be picklable.

    Raises:
        UserError: a worker died.
    """
    if workers == 1 or len(items) < few:
        yield from track(map(work, items), label, len(items))
        return
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            chunk = max(1, min(_MOST_AT_ONCE, len(items) // (4 * workers)))
            yield from track(_mapped(pool, work, items, chunk, _AHEAD * workers), label, len(items))
        except BrokenProcessPool as error:
            raise UserError("a worker died while decoding: run with --workers 1 to see at which video") from error


def _mapped(
    pool: ProcessPoolExecutor, work: Callable[[T], R], items: Sequence[T], chunk: int, ahead: int
) -> Iterator[R]:  # fmt: skip
    waiting: deque[Future[list[R]]] = deque()
    for begin in range(0, len(items), chunk):
        part = [items[place] for place in range(begin, min(begin + chunk, len(items)))]
        waiting.append(pool.submit(_each, work, part))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _each(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [work(item) for item in items]
