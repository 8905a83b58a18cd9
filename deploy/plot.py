"""Small plots as SVG text, written by hand: no plotting library, no script, colours from the page's CSS.

Marks carry classes (``s0`` .. ``s7`` for series) and ``<title>`` elements, so that a page can follow dark mode and
show the numbers on hover.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

__all__ = ["Line", "Mark", "latency_plot", "line_plot", "log_ticks", "nice_ticks"]

#: A curve: its name, the number of its colour, its points.
Line = tuple[str, int, Sequence[tuple[float, float]]]
Shape = Literal["circle", "square", "diamond", "triangle", "ring"]
_BAND = 84  # height in pixels of the part below an axis break
_CHAR = 6.3  # mean width of a character at the label size


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: latency ``x`` (ms) with ``x_high`` (p95), ``y`` accuracy (%) with its interval.

    ``front`` marks a point of the Pareto front, ``far`` one that need not be inside the main range of the axis.
    """

    name: str
    x: float
    y: float
    series: int
    shape: Shape
    hover: str
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    front: bool = False
    far: bool = False


@dataclass(slots=True)
class _Frame:
    """The drawing area and its scales.

    With ``below`` = (low, high) the axis is broken: values under the y range share a flat band at the bottom.
    """

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool
    below: tuple[float, float] | None = None
    left: int = 46
    right: int = 14
    top: int = 14
    bottom: int = 40
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    @property
    def base(self) -> float:
        """Where the unbroken part of the y axis ends."""
        return self.height - self.bottom - (0 if self.below is None else _BAND)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.below is not None and value < low:
            floor, ceiling = self.below
            return self.base + 16 + min(1.0, (ceiling - value) / (ceiling - floor)) * (_BAND - 22)
        return self.base - (value - low) / (high - low) * (self.base - self.top)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten within [low, high]; only the powers themselves over more than three decades."""
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]


def latency_plot(
    marks: Sequence[Mark],
    levels: Sequence[tuple[str, float]] = (),
    fronts: Sequence[tuple[int, Sequence[tuple[float, float]]]] = (),
    size: tuple[int, int] = (760, 420),
) -> str:
    """Accuracy (%) over latency (ms, log): error bars, named points, ``levels`` as dashed lines, Pareto ``fronts``.

    ``fronts`` are (series, points sorted by latency), drawn as stairs. Returns an ``<svg>`` element.
    """
    frame = _latency_frame(marks, levels, size)
    parts = [*_axes(frame, "latency of one answer, median (ms, log scale)", "accuracy (%)")]
    for name, level in levels:
        parts += _level(frame, name, level)
    for series, points in fronts:
        parts.append(_stairs(frame, series, points))
    for mark in marks:
        frame.taken.append((frame.x(mark.x) - 7, frame.y(mark.y) - 7, frame.x(mark.x) + 7, frame.y(mark.y) + 7))
    parts += [_error_bars(frame, mark) for mark in marks]
    # Front points choose the place of their names first.
    names = [_name(frame, mark) for mark in sorted(marks, key=lambda mark: not mark.front)]
    parts += [_mark(frame, mark) for mark in marks] + names
    return _svg(size, "Accuracy against latency", parts)


def line_plot(lines: Sequence[Line], title: str, size: tuple[int, int] = (340, 214)) -> str:
    """Curves over epochs with linear axes; the legend is the caller's. Returns an ``<svg>`` element."""
    points = [point for _, _, line in lines for point in line]
    xs, ys = [x for x, _ in points] or [0.0, 1.0], [y for _, y in points] or [0.0, 1.0]
    frame = _Frame(*size, (min(xs), max(max(xs), min(xs) + 1e-9)), _padded(min(ys), max(ys)), log_x=False)
    parts = _axes(frame, "epoch", title)
    for name, series, line in lines:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="line s{series % 8}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg(size, title, parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _latency_frame(marks: Sequence[Mark], levels: Sequence[tuple[str, float]], size: tuple[int, int]) -> _Frame:
    xs = [value for mark in marks for value in (mark.x, mark.x_high or mark.x)] or [1.0, 10.0]
    ys = [value for mark in marks for value in (mark.y, mark.y_low or mark.y, mark.y_high or mark.y)]
    low, high = _round(min(ys), max(ys)) if ys else (0.0, 100.0)
    lowest = min([*ys, *(level for _, level in levels)], default=low)
    below = None
    # What lies far below the candidates (the control, chance) would flatten them: break the axis instead.
    real = [y for mark in marks if not mark.far for y in (mark.y, mark.y_low or mark.y, mark.y_high or mark.y)]
    if real and min(real) - lowest > 0.8 * (max(real) - min(real)) + 5:
        low, high = _round(min(real), max(real))
        under = [y for y in (*ys, *(level for _, level in levels)) if y < low]
        below = (min(under) - 3, max(under) + 3)
    else:
        low = min(low, _round(lowest, high)[0])
    return _Frame(*size, (min(xs) / 1.45, max(xs) * 1.9), (low, high), log_x=True, below=below)


def _round(low: float, high: float) -> tuple[float, float]:
    """Whole fives around a range of percentages, with room above 100 % for the mark itself."""
    bottom = max(0.0, math.floor((low - 1) / 5) * 5.0)
    return bottom, max(min(100.0, math.ceil((high + 1) / 5) * 5.0), bottom + 5) + 1.0


def _axes(frame: _Frame, x_title: str, y_title: str) -> list[str]:
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    for tick in nice_ticks(*frame.y_range):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    ticks = log_ticks(*frame.x_range) if frame.log_x else nice_ticks(*frame.x_range)
    for tick in ticks:
        x = frame.x(tick)
        if frame.log_x:
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    if frame.below is not None:
        y = frame.base + 7
        parts.append(f'<path class="break" d="M{frame.left},{y} H{right}"/>')
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (frame.left + right) / 2
    if x_title:
        text = escape(x_title)
        parts.append(f'<text class="label" x="{middle:.0f}" y="{frame.height - 5}" text-anchor="middle">{text}</text>')
    if y_title:
        y = (frame.top + bottom) / 2
        turn = f'transform="rotate(-90 11 {y:.0f})"'
        text = escape(y_title)
        parts.append(f'<text class="label" x="11" y="{y:.0f}" text-anchor="middle" {turn}>{text}</text>')
    return parts


def _level(frame: _Frame, name: str, level: float) -> list[str]:
    y, right = frame.y(level), frame.width - frame.right
    width = _CHAR * len(name)
    frame.taken.append((right - width, y - 15, right, y + 2))
    return [
        f'<line class="level" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text class="small" x="{right - 2}" y="{y - 5:.1f}" text-anchor="end">{escape(name)}</text>',
    ]


def _stairs(frame: _Frame, series: int, points: Sequence[tuple[float, float]]) -> str:
    """Best accuracy that can be had within each latency."""
    if not points:
        return ""
    path = f"M{frame.x(points[0][0]):.1f},{frame.height - frame.bottom} V{frame.y(points[0][1]):.1f}"
    for x, y in points[1:]:
        path += f" H{frame.x(x):.1f} V{frame.y(y):.1f}"
    return f'<path class="front s{series % 8}" d="{path} H{frame.width - frame.right}"/>'


def _error_bars(frame: _Frame, mark: Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    lines = []
    if mark.y_low is not None and mark.y_high is not None:
        low, high = frame.y(mark.y_low), frame.y(mark.y_high)
        lines.append(f"M{x:.1f},{low:.1f} V{high:.1f} M{x - 4:.1f},{low:.1f} h8 M{x - 4:.1f},{high:.1f} h8")
    if mark.x_high is not None and mark.x_high > mark.x:
        lines.append(f"M{x:.1f},{y:.1f} H{frame.x(mark.x_high):.1f} m0,-3 v6")
    return f'<path class="error s{mark.series % 8}" d="{" ".join(lines)}"/>' if lines else ""


def _mark(frame: _Frame, mark: Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    css = f'class="{"line ring" if mark.shape == "ring" else "fill"} s{mark.series % 8}"'
    shapes = {
        "circle": f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="5.5">',
        "ring": f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="5">',
        "square": f'<rect {css} x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" rx="1.5">',
        "diamond": f'<path {css} d="M{x:.1f},{y - 7:.1f} l7,7 l-7,7 l-7,-7 z">',
        "triangle": f'<path {css} d="M{x:.1f},{y - 7:.1f} l7,12 h-14 z">',
    }
    opened = shapes[mark.shape]
    closing = f"</{opened[1:].split(' ', 1)[0]}>"
    halo = f'<circle class="halo s{mark.series % 8}" cx="{x:.1f}" cy="{y:.1f}" r="10"/>' if mark.front else ""
    return f"{halo}{opened}<title>{escape(mark.hover)}</title>{closing}"


def _name(frame: _Frame, mark: Mark) -> str:
    """The mark's name where it covers nothing; left out (the hover has it) when there is no such place."""
    if not mark.name:
        return ""
    x, y, width = frame.x(mark.x), frame.y(mark.y), _CHAR * len(mark.name)
    places: list[tuple[float, float, str]] = [(x + 11, y - 9, "start"), (x - 11, y - 9, "end")]
    places += [(x + 11, y + 17, "start"), (x - 11, y + 17, "end"), (x, y - 16, "middle"), (x, y + 24, "middle")]
    places += [(x + 11, y - 22, "start"), (x - 11, y - 22, "end"), (x + 11, y + 30, "start"), (x - 11, y + 30, "end")]
    for at_x, at_y, anchor in places:
        left = at_x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
        box = (left, at_y - 10, left + width, at_y + 3)
        inside = box[0] >= frame.left and box[2] <= frame.width and box[1] >= 2 and box[3] <= frame.height - 40
        if inside and not any(_overlap(box, other) for other in frame.taken):
            frame.taken.append(box)
            css = "name front-name" if mark.front else "name"
            text = escape(mark.name)
            return f'<text class="{css}" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{text}</text>'
    return ""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(size: tuple[int, int], title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    head = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}">'
    return f"{head}\n{body}\n</svg>"
