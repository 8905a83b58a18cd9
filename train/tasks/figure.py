"""Figures as PNG files: whole or not at all, without pyplot's global state; matplotlib is loaded on first use."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "save_figure"]


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty figure with one pair of axes, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots()
    return figure, axes


def save_figure(figure: "Figure", path: Path) -> Path:
    """Replace ``path`` by the figure atomically and return it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", pad_inches=0.1)
    return write_bytes(path, buffer.getvalue())
