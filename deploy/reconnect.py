"""A live source that comes back: when it is lost, it is opened again until it gives frames, or patience ends.

Attempts follow each other at a doubling, jittered distance (Exponential backoff and jitter: many watchers of one
camera must not knock in step), which begins anew only after a connection that held. All opening and reading happens in
reader threads, so the consumer hears several times a second that there is nothing yet, and can end at any moment.
"""

import math
import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

from deploy.newest import Feed, Newest
from deploy.source import Grabbed, Lost
from toolkit.cv import opencv
from toolkit.errors import UnavailableDevice
from toolkit.progress import note

__all__ = ["Patience", "Reconnecting"]

_WORD_EVERY_S = 0.1
_SLACK_S = 1.0  # for the timeout itself to be noticed
_STEADY_S = 30.0  # a connection that held for this long was a good one
_STUCK_S = 60.0  # beyond all its timeouts: a thread that hangs in a driver


@dataclass(frozen=True, slots=True)
class Patience:
    """``total_s`` after its loss a source is given up (``inf``: never).

    The n-th wait is between half and the whole of ``first_s`` * 2^n, at most ``most_s``.
    """

    total_s: float
    first_s: float = 2.0
    most_s: float = 30.0

    def wait_s(self, attempt: int) -> float:
        """How long to wait before this attempt (0, 1, ...)."""
        return random.uniform(0.5, 1.0) * min(self.most_s, self.first_s * 2.0 ** min(attempt, 30))


class Reconnecting:
    """``first`` is open already; ``again`` opens inside its iteration, and ends at once where nothing opens.

    ``timeout_s`` is how long opening may take; ``stall_timeout_s`` how long the source may be silent.
    """

    live = True

    def __init__(
        self, first: Feed, again: Callable[[], Iterator[Grabbed]], patience: Patience, timeout_s: float,
        stall_timeout_s: float,
    ) -> None:  # fmt: skip
        self.name, self.fps = first.name, first.fps
        self._again, self._patience = again, patience
        self._stall_timeout_s, self._stuck_s = stall_timeout_s, timeout_s + stall_timeout_s + _STUCK_S
        self._reader = Newest(first, stall_timeout_s)
        self._count = self._attempt = 0
        self._start_s = self._last_s = self._since_s = time.perf_counter()

    def __iter__(self) -> Iterator[Grabbed | Lost]:
        while True:
            grabbed = self._reader.take(self._stall_timeout_s)
            if grabbed is None:
                grabbed = yield from self._find(self._how())
            elif self._count and self._silence_s(grabbed) > self._stall_timeout_s + _SLACK_S:
                note(f"{self.name} was not read for {self._silence_s(grabbed):.0f} s; the model warms up again")
                yield Lost(grabbed.arrived_s - self._start_s, grabbed.arrived_s - self._last_s)
            yield self._stamped(grabbed)

    def _silence_s(self, grabbed: Grabbed) -> float:
        """Between this frame and the one before it, which may have been skipped: long if this process was stopped."""
        return (grabbed.arrived_s - self._last_s) / (grabbed.dropped + 1)

    def _stamped(self, grabbed: Grabbed) -> Grabbed:
        """On the clock of the first connection."""
        if not self._count:
            self._start_s = self._since_s = grabbed.arrived_s
        self._count += 1
        self._last_s = grabbed.arrived_s
        return replace(grabbed, stamp_s=grabbed.arrived_s - self._start_s)

    def _how(self) -> str:
        """What became of the connection, for people."""
        error = self._reader.error
        if error is not None and not isinstance(error, opencv().error):
            raise error
        how = f"gave no frame for {self._stall_timeout_s:g} s"
        how = "failed in the decoder" if error is not None else "ended" if self._reader.ended else how
        if not self._count:  # a source that never gave a frame is a mistake to tell, not to wait for
            raise UnavailableDevice(
                f"{self.name} stopped: it {how} after 0 frames; check cable, power and network, then start again"
            )
        return f"it {how} after {self._count} frames"

    def _find(self, how: str) -> Generator[Lost, None, Grabbed]:
        """Look for the source; the value is the first frame of the new connection."""
        lost_s, total_s, tries = time.perf_counter(), self._patience.total_s, 0
        until = "until it is back" if math.isinf(total_s) else f"for {total_s:g} s"
        note(f"{self.name} is lost: {how}; trying to reach it again {until}")
        if self._last_s - self._since_s >= _STEADY_S:
            self._attempt = 0
        while True:
            self._reader.close(0)
            due_s = time.perf_counter() + self._patience.wait_s(self._attempt)
            while time.perf_counter() < due_s or not self._reader.ended:
                yield self._word(lost_s, due_s, how)
                time.sleep(_WORD_EVERY_S)
            self._attempt, tries, began_s = self._attempt + 1, tries + 1, time.perf_counter()
            self._reader = Newest(Feed(self.name, self.fps, self._again()), self._stall_timeout_s)
            ended = False
            while not ended:
                ended, grabbed = self._reader.ended, self._reader.take(_WORD_EVERY_S)
                if grabbed is not None:
                    self._since_s = grabbed.arrived_s
                    gone_s = grabbed.arrived_s - self._last_s
                    note(f"{self.name} is back after {gone_s:.1f} s, at attempt {tries}; the model warms up again")
                    return grabbed
                yield self._word(lost_s, began_s, how)

    def _word(self, lost_s: float, began_s: float, how: str) -> Lost:
        """Nothing yet.

        Raises:
            UnavailableDevice: patience is at an end, or what has begun at ``began_s`` hangs for good.
        """
        now_s = time.perf_counter()
        if now_s - lost_s >= self._patience.total_s:
            raise UnavailableDevice(
                f"{self.name} stopped: {how} and did not come back within {self._patience.total_s:g} s; check cable, "
                "power and network, then start again"
            )
        if now_s - began_s >= self._stuck_s:  # a second thread would hang beside the first, then a third
            raise UnavailableDevice(f"{self.name} stopped: {how}, and its driver hangs; start again")
        return Lost(now_s - self._start_s, now_s - self._last_s)

    def close(self) -> None:
        """Stop the reader; one that is stuck in the driver is left behind as a daemon."""
        self._reader.close()
