"""A clip model behind the stream interface: the last T frames are kept and answered for at every step.

Until T frames have come, the first one stands in for those before it. Every stream of a batch has its own window.
"""

import numpy as np

from deploy.runtimes.base import Streams
from toolkit.contract import Array, Placement
from toolkit.errors import UserError

__all__ = ["WindowSession"]


class WindowSession:
    """Wraps a session whose ``step`` takes whole clips (B, 3, T, H, W)."""

    def __init__(self, inner: Streams) -> None:
        self.contract = inner.contract
        self.batch = inner.batch
        self._inner = inner
        # Twice as long as a clip: a frame is written once, and the window moves along until it must be wound back.
        frames = self.contract.frames
        channels, *sides = self.contract.frame
        self._film = np.zeros((self.batch, channels, 2 * frames, *sides), np.float32)
        self._end = frames
        self._fresh = [True] * self.batch

    def step(self, frame_BCHW: Array) -> Array:
        """Push one frame (B, 3, H, W) and answer for the window (B, K)."""
        want = (self.batch, *self.contract.frame)
        if frame_BCHW.shape != want:
            raise UserError(f"frame has shape {frame_BCHW.shape}, the model takes {want}")
        if frame_BCHW.dtype != np.float32:
            raise UserError(
                f"frame has dtype {frame_BCHW.dtype}, the model takes float32 (apply the bundle's preprocessing)"
            )
        frames = self.contract.frames
        if self._end == self._film.shape[2]:
            self._film[:, :, :frames] = self._film[:, :, frames:]
            self._end = frames
        start = self._end + 1 - frames
        window = self._film[:, :, start : self._end + 1]
        for stream, fresh in enumerate(self._fresh):
            if fresh:
                window[stream] = frame_BCHW[stream][:, None]
        window[:, :, -1] = frame_BCHW
        answer = self._inner.step(window)  # if it refuses the frame, the next one takes its place
        self._end += 1
        self._fresh = [False] * self.batch
        return answer

    def reset(self, stream: int | None = None) -> None:
        """Forget the window of one stream, or of all."""
        self._inner.reset(stream)
        for index in range(self.batch) if stream is None else (stream,):
            self._fresh[index] = True

    def close(self) -> None:
        """Close the wrapped session."""
        self._inner.close()

    def placement(self) -> Placement:
        """Where the wrapped session runs."""
        return self._inner.placement()
