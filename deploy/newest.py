"""A reader thread with a single slot: who looks gets the newest frame, and knows how many were overwritten."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from deploy.source import Grabbed
from toolkit.errors import UnavailableDevice

__all__ = ["Feed", "Newest"]


@dataclass(frozen=True, slots=True)
class Feed:
    """What the reader thread reads; ``finite`` when an end is no failure."""

    name: str
    fps: float
    frames: Iterator[Grabbed]
    finite: bool = False


class Newest:
    """The newest frame of a feed, which is read, and let go of, in a thread of its own."""

    live = True

    def __init__(self, feed: Feed, stall_timeout_s: float) -> None:
        self.name, self.fps, self._finite = feed.name, feed.fps, feed.finite
        # A recording may have seconds between its frames; it ends by itself.
        self._stall_timeout_s = None if feed.finite else stall_timeout_s
        self._news = threading.Condition()
        self._slot: Grabbed | None = None
        self._missed = 0
        self._ended = self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(feed.frames,), daemon=True, name="vidon-capture")
        self._thread.start()

    def _read(self, frames: Iterator[Grabbed]) -> None:
        try:
            for grabbed in frames:
                with self._news:
                    if self._closed:
                        break
                    self._missed += self._slot is not None
                    self._slot = grabbed
                    self._news.notify()
        except Exception as error:  # handed to the consumer, which raises it
            self._error = error
        finally:
            with contextlib.suppress(AttributeError):
                frames.close()  # type: ignore[attr-defined]  # releases the device in the thread that uses it
            with self._news:
                self._ended = True
                self._news.notify()

    def take(self, timeout_s: float | None) -> Grabbed | None:
        """The newest frame, at the latest after ``timeout_s``; None when there is none."""
        with self._news:
            self._news.wait_for(lambda: self._slot is not None or self._ended, timeout_s)
            grabbed, missed, self._slot, self._missed = self._slot, self._missed, None, 0
        return None if grabbed is None else replace(grabbed, dropped=missed)

    @property
    def ended(self) -> bool:
        """Whether the reader has let go of the feed; its last frame may not have been taken."""
        return self._ended

    @property
    def error(self) -> Exception | None:
        """What the feed ended with, if it was no quiet end."""
        return self._error

    def __iter__(self) -> Iterator[Grabbed]:
        count = 0
        while True:
            grabbed = self.take(self._stall_timeout_s)
            if grabbed is None:
                self._explain_the_end(count)
                return
            count += 1
            yield grabbed

    def _explain_the_end(self, count: int) -> None:
        if self._error is not None:
            raise self._error
        if self._ended and self._finite:
            return
        how = "ended" if self._ended else f"gave no frame for {self._stall_timeout_s:g} s"
        raise UnavailableDevice(
            f"{self.name} stopped: it {how} after {count} frames; check cable, power and network, then start again"
        )

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop the reader; one that is stuck in the driver is left behind as a daemon."""
        with self._news:
            self._closed = True
        self._thread.join(timeout_s)
