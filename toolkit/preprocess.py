"""From camera pixels to model input: the one implementation that training and every device share.

Space: the frame is scaled so that it covers the model's picture and cropped in the centre (``fit = "crop"``),
or scaled to it whole (``fit = "stretch"``), turned from BGR to RGB and normalised per channel. Time: the model
runs at a fixed frame rate; the sampler picks, causally, the first frame at or after each tick of that rate, so
a 30 frames/s camera and a 12 frames/s file mean the same to the model. Shape suffixes: H, W picture, C channels.
"""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from toolkit.cv import opencv

__all__ = ["FrameSampler", "Preprocess"]

_EPSILON_S = 1e-3
_Pixels = Annotated[int, Field(ge=1)]
_Above0 = Annotated[float, Field(gt=0)]


class Preprocess(BaseModel):
    """How a frame becomes model input; travels inside the bundle.

    ``size`` is (H, W) in pixels, ``fps`` the rate the model runs at, ``mean`` and ``std`` are per RGB channel
    on the [0, 1] scale: ``x = (rgb / 255 - mean) / std``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[_Pixels, _Pixels] = (112, 112)
    fit: Literal["crop", "stretch"] = "crop"
    fps: float = Field(default=10.0, gt=0)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[_Above0, _Above0, _Above0] = (0.5, 0.5, 0.5)

    def picture(self, frame_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Scale and crop: uint8 BGR of any size -> uint8 RGB (H, W, 3)."""
        if frame_HWC.ndim == 2:
            frame_HWC = np.repeat(frame_HWC[:, :, None], 3, axis=2)
        cv2 = opencv()
        return np.asarray(cv2.cvtColor(self.scaled(frame_HWC), cv2.COLOR_BGR2RGB), np.uint8)

    def scaled(
        self, frame_HWC: npt.NDArray[np.uint8], out_HWC: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Scale and crop, channels as they come: uint8 of any size -> uint8 (H, W, 3), into ``out`` if given."""
        height, width = self.size
        rows, cols = frame_HWC.shape[:2]
        scale = max(height / rows, width / cols)
        top, left, crop_rows, crop_cols = self.window((rows, cols))
        crop = frame_HWC[top : top + crop_rows, left : left + crop_cols, :3]
        if crop.shape[:2] != (height, width):
            cv2 = opencv()
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            crop = np.asarray(cv2.resize(crop, (width, height), dst=out_HWC, interpolation=method), np.uint8)
        if out_HWC is None:
            return crop
        if crop is not out_HWC:
            out_HWC[:] = crop
        return out_HWC

    def window(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of a frame of ``size`` (H, W) that the picture shows: top, left, rows, columns in pixels.

        With ``fit = "crop"`` it is the central part with the model's aspect: cropping first scales only the pixels
        that remain.
        """
        rows, cols = size
        if self.fit == "stretch":
            return 0, 0, rows, cols
        scale = max(self.size[0] / rows, self.size[1] / cols)
        crop_rows = min(rows, max(1, round(self.size[0] / scale)))
        crop_cols = min(cols, max(1, round(self.size[1] / scale)))
        return (rows - crop_rows) // 2, (cols - crop_cols) // 2, crop_rows, crop_cols

    def normalise(self, picture_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 RGB (..., H, W, 3) -> float32 (..., 3, H, W), normalised per channel."""
        table = _lookup(self.mean, self.std)
        channels = [table[channel][picture_HWC[..., channel]] for channel in range(3)]
        return np.stack(channels, axis=-3)

    def __call__(self, frame_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 BGR frame of any size -> float32 (3, H, W), the model's input."""
        return self.normalise(self.picture(frame_HWC))


@functools.lru_cache(maxsize=16)
def _lookup(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """(3, 256) table of normalised values: one gather instead of three passes of arithmetic."""
    level = np.arange(256, dtype=np.float64) / 255.0
    rows = [(level - m) / s for m, s in zip(mean, std, strict=True)]
    return np.asarray(rows, dtype=np.float32)


class FrameSampler:
    """Say how many model steps are due when a frame with timestamp ``t_s`` arrives.

    Ticks stand at ``first timestamp + k / fps``; each tick takes the first frame at or after it. A slow
    source therefore repeats frames (result > 1) and a fast one skips some (result 0). ``limit`` bounds the
    repeats, for live sources that stalled. ``start_s`` and ``done`` go on in the middle of a file: its first
    timestamp, and the number of ticks that earlier frames have answered.

    >>> sampler = FrameSampler(fps=10)
    >>> [sampler.due(t / 30) for t in range(7)]
    [1, 0, 0, 1, 0, 0, 1]
    """

    def __init__(self, fps: float, limit: int | None = None, start_s: float | None = None, done: int = 0) -> None:
        self._fps = fps
        self._limit = limit
        self._start = start_s
        self._done = done

    def first(self, times_s: npt.NDArray[np.float64], ticks: Sequence[int]) -> npt.NDArray[np.int64]:
        """Of N frames shown at rising ``times_s``, the number of the one that answers for each tick, N for none."""
        start_s = float(times_s[0]) if self._start is None else self._start
        return np.searchsorted(np.floor((times_s - start_s + _EPSILON_S) * self._fps), np.asarray(ticks))

    def due(self, t_s: float) -> int:
        """Return the number of steps this frame answers for (0 means: skip the frame)."""
        if self._start is None:
            self._start = t_s
        ticks = math.floor((t_s - self._start + _EPSILON_S) * self._fps) + 1
        count = max(0, ticks - self._done)
        self._done = max(self._done, ticks)
        return count if self._limit is None else min(count, self._limit)
