"""A contact sheet: a query clip and the clips found for it, a row of pictures each, as one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from train.data.clip import Clip
from train.data.views import cut_views
from train.tasks.figure import new_figure, save_figure

__all__ = ["contact_sheet"]

_SHOWN, _SIDE, _GAP = 6, 112, 4


def contact_sheet(path: Path, rows: Sequence[tuple[Clip | None, str]], frames: int, fps: float) -> Path:
    """One row for each (clip, caption), the query first: ``_SHOWN`` pictures spread over its central ``frames``.

    A clip that is gone (None) or cannot be read any more has an empty row that says so.
    """
    looks = Preprocess(size=(_SIDE, _SIDE), fps=fps)
    shown = min(_SHOWN, frames)
    sheet = np.full((len(rows) * (_SIDE + _GAP) - _GAP, shown * (_SIDE + _GAP) - _GAP, 3), 255, np.uint8)
    captions = []
    for row, (clip, caption) in enumerate(rows):
        top = row * (_SIDE + _GAP)
        pictures = _pictures(clip, looks, frames)
        if pictures is not None:
            sheet[top : top + _SIDE] = _strip(pictures, shown)
        captions.append(caption if pictures is not None else f"{caption}\n(cannot be read)")
    height, width = sheet.shape[0] / 110, sheet.shape[1] / 110
    figure, axes = new_figure(width + 2.4, height + 0.2)
    axes.imshow(sheet, interpolation="none")
    axes.set_xticks([])
    middles = [row * (_SIDE + _GAP) + _SIDE / 2 for row in range(len(rows))]
    axes.set_yticks(middles, [caption.replace("$", r"\$") for caption in captions], fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.axhline(_SIDE + _GAP / 2, color="#c03d3e", linewidth=2)  # the query stands above it
    return save_figure(figure, path)


def _pictures(clip: Clip | None, looks: Preprocess, frames: int) -> npt.NDArray[np.uint8] | None:
    try:
        return None if clip is None else np.asarray(cut_views(clip, looks, frames)[0])
    except UserError:
        return None


def _strip(pictures_THWC: npt.NDArray[np.uint8], shown: int) -> npt.NDArray[np.uint8]:
    """Pictures side by side (H, W', 3)."""
    chosen = np.linspace(0, len(pictures_THWC) - 1, shown).round().astype(int)
    strip = np.full((_SIDE, shown * (_SIDE + _GAP) - _GAP, 3), 255, np.uint8)
    for column, index in enumerate(chosen.tolist()):
        left = column * (_SIDE + _GAP)
        strip[:, left : left + _SIDE] = pictures_THWC[index]
    return strip
