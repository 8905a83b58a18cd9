"""The curves of a run as one picture: loss by step and epoch, learning rate, validation."""

import io
import json
from pathlib import Path
from typing import Any

from toolkit.files import write_bytes
from toolkit.progress import note

__all__ = ["draw_curves"]

_LOSS = "loss (light: of a step, dark: mean of an epoch)"
_INK, _FAINT = "#1f4e79", "#a9c4de"


def draw_curves(folder: Path) -> Path | None:
    """Draw ``curves.png`` from ``metrics.jsonl``; None (and a note) where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        note("  no curves.png: matplotlib is not installed, run  pip install 'vidon[train]'")
        return None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    steps = [record for record in records if "lr" in record]
    epochs = [record for record in records if "lr" not in record]
    validated = [record for record in epochs if record.get("validation") is not None]
    figure = Figure(figsize=(4.2 * (3 if validated else 2), 3.2), layout="constrained")
    axes = figure.subplots(1, 3 if validated else 2)
    _line(axes[0], steps, "loss", _LOSS, _FAINT, 0.8)
    _line(axes[0], epochs, "loss", _LOSS, _INK, 1.6)
    _line(axes[1], steps, "lr", "learning rate", _INK, 1.6)
    if validated:
        _line(axes[2], validated, "validation", "validation (higher is better)", _INK, 1.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return write_bytes(folder / "curves.png", buffer.getvalue())


def _line(axes: Any, records: list[dict[str, Any]], key: str, title: str, colour: str, width: float) -> None:
    marker = "o" if len(records) <= 30 and width > 1 and key != "lr" else None
    axes.plot([r["step"] for r in records], [r[key] for r in records], color=colour, lw=width, marker=marker, ms=3)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
