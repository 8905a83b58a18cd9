"""A clip model behind the stream interface: the last T frames are kept and answered for at every step.

Until T frames have come, the first one stands in for those before it.
"""

import numpy as np

from toolkit.contract import Array, Placement, Session
from toolkit.errors import UserError

__all__ = ["WindowSession"]


class WindowSession:
    """Wraps a session whose ``step`` takes whole clips (1, 3, T, H, W)."""

    def __init__(self, inner: Session) -> None:
        self.contract = inner.contract
        self._inner = inner
        self._window: Array | None = None

    def step(self, frame_BCHW: Array) -> Array:
        """Push one frame (1, 3, H, W) and answer for the window (1, K)."""
        if frame_BCHW.shape != (1, *self.contract.frame):
            raise UserError(f"frame has shape {frame_BCHW.shape}, the model takes {(1, *self.contract.frame)}")
        if self._window is None:
            self._window = np.repeat(frame_BCHW[:, :, None], self.contract.frames, axis=2)
        else:
            self._window = np.concatenate([self._window[:, :, 1:], frame_BCHW[:, :, None]], axis=2)
        return self._inner.step(self._window)

    def reset(self) -> None:
        """Forget the window."""
        self._inner.reset()
        self._window = None

    def close(self) -> None:
        """Close the wrapped session."""
        self._inner.close()

    def placement(self) -> Placement:
        """Where the wrapped session runs."""
        return self._inner.placement()
