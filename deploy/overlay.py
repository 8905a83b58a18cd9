"""What the camera loop draws: the answer on the picture, and a panel below it that hides none of the pixels.

The panel holds one bar per class, a strip of the last answers (colour: class, height: confidence), frames/s and
the time of every stage. Everything scales with the picture's width; small pictures are enlarged first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.contract import Answer, chosen
from toolkit.cv import opencv
from toolkit.detection import Found

__all__ = ["Overlay", "Scene", "clock_text", "colour_of"]

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_MIN_WIDTH, _DESIGN_WIDTH = 640, 960
_PANEL = 148  # height of the panel at the design width
_ROWS, _COLUMNS = 6, 120
_INK: Colour = (240, 238, 236)
_DIM: Colour = (160, 152, 146)
_TRACK: Colour = (66, 58, 52)
_GROUND: Colour = (34, 28, 24)
_RED: Colour = (72, 72, 232)
# BGR; chosen to stay apart for colour-blind eyes on a dark ground.
_PALETTE: tuple[Colour, ...] = (
    (240, 160, 72), (64, 168, 244), (140, 200, 92), (160, 112, 236),
    (212, 204, 84), (232, 128, 160), (96, 220, 236), (188, 180, 172),
)  # fmt: skip


def colour_of(index: int) -> Colour:
    """BGR colour of a class; the palette repeats after eight."""
    return _PALETTE[index % len(_PALETTE)]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown with one frame.

    ``probabilities`` (K,) is None before the first answer; ``history`` holds (class, confidence) per step, oldest
    first; ``stages_ms`` maps stage to recent mean; ``boxes`` are a detector's, in pixels of the frame.
    """

    probabilities: npt.NDArray[np.float32] | None
    history: Sequence[tuple[int, float]]
    stages_ms: dict[str, float]
    fps: float
    stamp_s: float
    live: bool = False
    dropped: int = 0
    losses: int = 0
    boxes: Found | None = None


class _Type:
    """Text: TrueType with Unicode in OpenCV 5, the Hershey strokes (ASCII only) before."""

    def __init__(self) -> None:
        cv2 = opencv()
        self._face: Any = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None

    def width(self, text: str, px: int, bold: bool = False) -> int:
        """Width in pixels."""
        cv2 = opencv()
        if self._face is not None:
            return int(cv2.getTextSize((0, 0), text, (0, 0), self._face, px, 600 if bold else 400)[2])
        return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, px / 30, 2 if bold else 1)[0][0])

    def fit(self, text: str, px: int, room: int, bold: bool = False) -> str:
        """The text, cut with an ellipsis so that it is at most ``room`` pixels wide."""
        if self.width(text, px, bold) <= room:
            return text
        while len(text) > 1 and self.width(text + "..", px, bold) > room:
            text = text[:-1]
        return text + ".."

    def put(
        self, canvas: Picture, text: str, at: tuple[int, int], px: int, colour: Colour = _INK, bold: bool = False,
        right: bool = False,
    ) -> None:  # fmt: skip
        """Write with the baseline's left (or ``right``) end at ``at`` = (x, y)."""
        cv2 = opencv()
        x, y = at
        x -= self.width(text, px, bold) if right else 0
        if self._face is not None:
            cv2.putText(canvas, text, (x, y), colour, self._face, px, 600 if bold else 400)
            return
        plain = text.encode("ascii", "replace").decode()
        cv2.putText(
            canvas, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, px / 30, colour, 2 if bold else 1, cv2.LINE_AA
        )  # fmt: skip


class Overlay:
    """Draw scenes for one model; ``title`` names the artefact in the panel's footer."""

    def __init__(self, labels: Sequence[str], title: str = "", answer: Answer = "one") -> None:
        self._labels, self._kind = tuple(labels), answer
        self._title = title
        self._type = _Type()

    def draw(self, frame: Picture, scene: Scene) -> Picture:
        """uint8 BGR (H, W, 3) -> a new picture, a little higher and at least 640 wide, both edges even."""
        cv2 = opencv()
        rows, cols = frame.shape[:2]
        if frame.ndim == 2:
            frame = cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)
        width = max(_MIN_WIDTH, cols) // 2 * 2
        height = round(rows * width / cols)
        scale = width / _DESIGN_WIDTH
        panel = round(_PANEL * scale)
        panel += (height + panel) % 2  # video encoders want even edges
        canvas = np.empty((height + panel, width, 3), np.uint8)
        canvas[height:] = _GROUND
        if (cols, rows) == (width, height):
            canvas[:height] = frame
        else:
            cv2.resize(frame, (width, height), dst=canvas[:height], interpolation=cv2.INTER_LINEAR)
        if scene.boxes is not None:
            self._boxes(canvas[:height], scene.boxes, width / cols, scale)
        self._answer(canvas[:height], scene, scale)
        self._clock(canvas[:height], scene, scale)
        left, middle = round(0.36 * width), round(0.74 * width)
        self._bars(canvas[height:, :left], scene, scale)
        self._strip(canvas[height:, left:middle], scene, scale)
        self._timings(canvas[height:, middle:], scene, scale)
        return canvas

    def _answer(self, picture: Picture, scene: Scene, scale: float) -> None:
        """The label and its confidence, top left; of many labels all that are named."""
        px, pad = round(30 * scale), round(14 * scale)
        named = () if scene.probabilities is None else chosen(scene.probabilities, self._kind)
        if scene.probabilities is None:
            label, share, colour = "warming up", "", _DIM
        elif not named or (scene.boxes is not None and not len(scene.boxes)):
            label, share, colour = "nothing", "", _DIM
        else:
            label, colour = ", ".join(self._labels[index] for index in named), colour_of(named[0])
            share = " ".join(f"{100 * float(scene.probabilities[index]):.0f} %" for index in named[:3])
        label = self._type.fit(label, px, picture.shape[1] // 2, bold=True)
        wide = self._type.width(label, px, bold=True)
        box = wide + 3 * pad + (self._type.width(share, px) + pad if share else 0)
        _shade(picture, (pad, pad, pad + box, pad + round(1.9 * px)), 0.72)
        opencv().rectangle(picture, (pad, pad), (pad + pad // 2, pad + round(1.9 * px) - 1), colour, -1)
        base = pad + round(1.32 * px)
        self._type.put(picture, label, (pad * 5 // 2, base), px, _INK, bold=True)
        self._type.put(picture, share, (pad * 5 // 2 + wide + pad, base), px, colour)

    def _boxes(self, picture: Picture, found: Found, zoom: float, scale: float) -> None:
        """A frame around each box, with its label and score above it (inside it at the upper edge)."""
        cv2, px = opencv(), max(10, round(16 * scale))
        rows = zip(
            (found.boxes * zoom).round().astype(int).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
        for (left, top, right, bottom), score, index in reversed(list(rows)):
            colour, text = colour_of(index), f"{self._labels[index]} {100 * score:.0f} %"
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, max(2, round(3 * scale)), cv2.LINE_AA)
            wide, high = self._type.width(text, px) + px // 2, round(1.4 * px)
            start = max(0, min(left, picture.shape[1] - wide))
            edge = top - high if top >= high else top
            cv2.rectangle(picture, (start, edge), (start + wide, edge + high), colour, -1)
            self._type.put(picture, text, (start + px // 4, edge + round(1.05 * px)), px, _GROUND)

    def _clock(self, picture: Picture, scene: Scene, scale: float) -> None:
        """The time of the source, top right, with a red dot when live."""
        px, pad = round(18 * scale), round(14 * scale)
        text = clock_text(scene.stamp_s)
        wide = self._type.width(text, px) + 2 * pad + (px if scene.live else 0)
        edge = picture.shape[1] - pad
        _shade(picture, (edge - wide, pad, edge, pad + round(1.9 * px)), 0.6)
        self._type.put(picture, text, (edge - pad, pad + round(1.3 * px)), px, _INK, right=True)
        if scene.live:
            centre = (edge - wide + pad, pad + round(0.95 * px))
            opencv().circle(picture, centre, max(3, px // 3), _RED, -1, opencv().LINE_AA)

    def _bars(self, area: Picture, scene: Scene, scale: float) -> None:
        """One bar per class in the labels' order; with many classes, the most probable ones."""
        values = np.zeros(len(self._labels)) if scene.probabilities is None else scene.probabilities
        count = len(self._labels)
        shown = list(range(count)) if count <= _ROWS else [int(i) for i in np.argsort(-values)[:_ROWS]]
        height, width = area.shape[:2]
        pad = round(14 * scale)
        pitch = (height - 2 * pad) / max(len(shown), 3)
        px = min(round(16 * scale), round(0.8 * pitch))
        named = () if scene.probabilities is None else chosen(scene.probabilities, self._kind)
        start, stop = pad + round(0.34 * width), width - pad - round(52 * scale)
        thick = max(4, round(0.42 * pitch))
        for row, index in enumerate(shown):
            middle = pad + round((row + 0.5) * pitch)
            ink = _INK if index in named else _DIM
            name = self._type.fit(self._labels[index], px, start - 2 * pad, index in named)
            self._type.put(area, name, (pad, middle + round(0.36 * px)), px, ink, index in named)
            _bar(area, (start, stop), middle, thick, _TRACK)
            end = start + round((stop - start) * float(values[index]))
            _bar(area, (start, end), middle, thick, colour_of(index))
            text = f"{100 * float(values[index]):.0f} %"
            self._type.put(area, text, (width - pad, middle + round(0.36 * px)), px, ink, index in named, right=True)

    def _strip(self, area: Picture, scene: Scene, scale: float) -> None:
        """The last answers, newest at the right, and the artefact's name."""
        height, width = area.shape[:2]
        pad, px = round(14 * scale), round(14 * scale)
        top, bottom = pad + px, height - 2 * pad - px
        self._type.put(area, "history", (pad, pad + px // 2 + 2), px, _DIM)
        area[top + px // 2 : bottom, pad : width - pad] = _TRACK
        pitch = (width - 2 * pad) / _COLUMNS
        full = bottom - top - px // 2
        recent = list(scene.history)[-_COLUMNS:]
        for back, (index, confidence) in enumerate(reversed(recent)):
            right = width - pad - round(back * pitch)
            left = width - pad - round((back + 1) * pitch)
            area[bottom - max(2, round(full * confidence)) : bottom, left:right] = colour_of(index)
        title = self._type.fit(self._title, px, width - 2 * pad)
        self._type.put(area, title, (pad, height - pad), px, _DIM)

    def _timings(self, area: Picture, scene: Scene, scale: float) -> None:
        """Frames/s and milliseconds per stage."""
        height, width = area.shape[:2]
        pad, px = round(14 * scale), round(14 * scale)
        big = round(26 * scale)
        fps = "-" if scene.fps <= 0 else f"{scene.fps:.0f}" if scene.fps >= 100 else f"{scene.fps:.1f}"
        self._type.put(area, fps, (pad, pad + round(0.8 * big)), big, _INK, bold=True)
        after = pad + self._type.width(fps, big, bold=True) + pad // 2
        self._type.put(area, "frames/s", (after, pad + round(0.8 * big)), px, _DIM)
        if scene.live and (scene.dropped or scene.losses):
            missed = f"lost {scene.losses}x " * bool(scene.losses) + f"-{scene.dropped}"
            missed = self._type.fit(missed, px, width - after - self._type.width("frames/s", px) - 2 * pad)
            self._type.put(area, missed, (width - pad, pad + round(0.8 * big)), px, _DIM, right=True)
        shown = [(name, value) for name, value in scene.stages_ms.items() if name != "output"]
        first = pad + big + round(0.9 * px)
        pitch = (height - pad // 2 - first) / max(1, len(shown))
        size = max(8, min(px, round(0.9 * pitch)))
        for row, (name, value) in enumerate(shown):
            base = first + round((row + 0.5) * pitch)
            self._type.put(area, name, (pad, base), size, _DIM)
            self._type.put(area, f"{value:.1f} ms", (width - pad, base), size, _INK, right=True)


def clock_text(seconds: float) -> str:
    """Minutes, seconds and tenths; from an hour on hours, minutes and seconds.

    >>> clock_text(59.96)
    '01:00.0'
    """
    tenths = round(10 * max(0.0, seconds))
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:
        return f"{minutes:02d}:{rest / 10:04.1f}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 10:02d}"


def _shade(picture: Picture, box: tuple[int, int, int, int], strength: float) -> None:
    """Darken a box (left, top, right, bottom) so that text on it is readable."""
    left, top, right, bottom = box
    part = picture[top:bottom, max(0, left) : right]
    part[:] = (part * (1 - strength) + np.asarray(_GROUND) * strength).astype(np.uint8)


def _bar(area: Picture, span: tuple[int, int], middle: int, thick: int, colour: Colour) -> None:
    """A horizontal bar with round ends."""
    cv2 = opencv()
    left, right = span
    radius = thick // 2
    if right - left < 2 * radius:
        return
    cv2.rectangle(area, (left + radius, middle - radius), (right - radius, middle + radius), colour, -1, cv2.LINE_AA)
    for x in (left + radius, right - radius):
        cv2.circle(area, (x, middle), radius, colour, -1, cv2.LINE_AA)
