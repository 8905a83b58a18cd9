"""Views of one clip for testing: windows spread over its time, crops spread over its longer side.

The logits of all views are averaged (Wang et al. 2018, arXiv:1711.07971). V views, T frames, H, W picture.
"""

import numpy as np
import numpy.typing as npt

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from train.data.clip import Clip
from train.data.opening import open_clip
from train.data.videos import window_starts

__all__ = ["cut_views"]


class _End(Preprocess):
    """Shows one end of the longer side, not its middle."""

    last: bool

    def window(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """As the base class, moved to the first or last rows and columns."""
        _, _, rows, cols = super().window(size)
        return (size[0] - rows, size[1] - cols, rows, cols) if self.last else (0, 0, rows, cols)


def cut_views(
    clip: Clip, preprocess: Preprocess, frames: int, temporal: int = 1, spatial: int = 1
) -> npt.NDArray[np.uint8]:
    """Every view of a clip: uint8 RGB (temporal * spatial, frames, H, W, 3), times outermost; 1 and 1 is the middle.

    ``temporal`` windows start evenly from the first picture to the last window; ``spatial`` = 3 shows both ends and
    the middle of the longer side. A clip that is too short repeats its last picture.

    Raises:
        UserError: the clip cannot be read; ``spatial`` is neither 1 nor 3, or 3 without ``fit = "crop"``.
    """
    if spatial not in (1, 3):
        raise UserError(f"{spatial} spatial views: 1 (the middle) or 3 (both ends too)")
    if spatial == 3 and preprocess.fit != "crop":
        raise UserError('3 spatial views need preprocess.fit = "crop": a stretched picture shows the whole frame')
    looks = [preprocess]
    if spatial == 3:
        first, last = (_End(**preprocess.model_dump(), last=last) for last in (False, True))
        looks = [first, preprocess, last]
    with open_clip(clip) as video:
        starts = window_starts(video.ticks(preprocess.fps, clip.span), frames, temporal, None)
        views = [
            video.pictures(range(start, start + frames), look, clip.span).pictures for start in starts for look in looks
        ]
    return np.stack(views)
