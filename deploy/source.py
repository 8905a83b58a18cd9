"""What a source of frames gives to the camera loop: frames, and word that a live source is lost for now."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Grabbed", "Lost", "Picture", "Source"]

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame. frame: uint8 BGR (H, W, 3); stamp_s: seconds on the source's own clock; arrived_s: perf_counter.

    ``capture_ms`` is the time spent decoding (for a live source without the wait for the camera), ``dropped`` the
    number of frames that were skipped since the one before.
    """

    frame: Picture
    stamp_s: float
    arrived_s: float
    capture_ms: float
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """A live source is lost and looked for; comes several times a second until the next frame.

    ``stamp_s`` is the source's clock now, ``since_s`` the seconds since its last frame.
    """

    stamp_s: float
    since_s: float


class Source(Protocol):
    """An opened source: iterate over it once, then close it."""

    name: str
    live: bool
    fps: float

    def __iter__(self) -> Iterator[Grabbed | Lost]:
        """Yield frames until the source ends.

        Raises:
            UnavailableDevice: a live source stopped, and did not come back in time.
        """
        ...

    def close(self) -> None:
        """Let go of the device; closing twice is harmless."""
        ...
