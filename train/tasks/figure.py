"""Figures as PNG files: whole or not at all, without pyplot's global state; matplotlib is loaded on first use."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "save_figure", "shortened"]

#: matplotlib's own font has no Chinese, Japanese or Korean: what may be installed that has, best known first.
_WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Microsoft YaHei", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip
_LONGEST = 28


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty figure with one pair of axes, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots()
    return figure, axes


def save_figure(figure: "Figure", path: Path) -> Path:
    """Replace ``path`` by the figure atomically and return it.

    A sign that no installed font has is drawn as a box with its number, without a warning for each.
    """
    from matplotlib import font_manager, rc_context, rcParams

    installed = set(font_manager.get_font_names())
    fonts = [*rcParams["font.sans-serif"][:1], *(font for font in _WIDE if font in installed)]
    buffer = io.BytesIO()
    with rc_context({"font.sans-serif": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", pad_inches=0.1)
    return write_bytes(path, buffer.getvalue())


def shortened(label: str) -> str:
    """A label that leaves room for the picture; no sign of it starts a formula."""
    text = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}\u2026"
    return text.replace("$", r"\$")
