"""The report: every rung of the ladder with its accuracy, size and latency, and how to get them again.

One frozen model holds the numbers (``report.json``); :mod:`deploy.page` turns it into a self-contained HTML page
and :mod:`deploy.ladder` into terminal and Markdown tables. A value that is unknown is None, never zero.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.camera import CameraSummary
from devices.machine import Machine
from toolkit.cv import opencv
from toolkit.errors import UserError
from toolkit.files import writable_dir, write_text

__all__ = [
    "Confusion",
    "Curve",
    "Report",
    "Rung",
    "best_rung",
    "load_report",
    "pareto_front",
    "preview_of",
    "write_comparison",
    "write_report",
]

SCHEMA = 1
_CLOSE = 0.01  # accuracies within one point count as equal when the best artefact is chosen


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rung(_Frozen):
    """One rung: a model, or one exported file run through its runtime.

    ``accuracy``, its 95 % interval, ``agreement`` (with the float model's answers) are shares in [0, 1];
    ``max_diff`` is the largest difference of a logit from the float model. ``p50_ms`` is for one answer: one
    ``frame`` of a stream or one whole ``clip``. ``evidence`` says whether the latency was measured on the machine.
    ``passed`` is the verdict of the parity check, None where there is nothing to compare; ``why`` explains it.
    """

    name: str
    kind: Literal["teacher", "control", "student", "pruned", "artefact"]
    runtime: str = "torch"
    precision: str = "fp32"
    accuracy: float | None = Field(default=None, ge=0, le=1)
    ci_low: float | None = Field(default=None, ge=0, le=1)
    ci_high: float | None = Field(default=None, ge=0, le=1)
    clips: int | None = Field(default=None, ge=0)
    parameters: int | None = Field(default=None, ge=0)
    macs: int | None = Field(default=None, ge=0)
    size_bytes: int | None = Field(default=None, ge=0)
    p50_ms: float | None = Field(default=None, gt=0)
    p95_ms: float | None = Field(default=None, gt=0)
    fps: float | None = Field(default=None, ge=0)
    per: Literal["frame", "clip"] = "frame"
    agreement: float | None = Field(default=None, ge=0, le=1)
    max_diff: float | None = Field(default=None, ge=0)
    evidence: Literal["measured", "simulated", "estimated"] = "measured"
    passed: bool | None = None
    why: str = ""


class Confusion(_Frozen):
    """How often each true label (row) was answered by each label (column), for the rung called ``rung``."""

    rung: str
    counts: tuple[tuple[int, ...], ...]


class Curve(_Frozen):
    """One training curve; curves of the same ``panel`` (for example ``distil: loss``) share a plot."""

    panel: str
    name: str
    points: tuple[tuple[float, float], ...]


class Report(_Frozen):
    """Everything that is reported about one model on one machine.

    ``created`` is ISO 8601; ``chance`` the accuracy of guessing; ``control`` that of the best single-frame model
    (read off the rungs when left out); ``best`` names the recommended artefact (chosen by :func:`best_rung` when
    left out); ``preview`` is a JPEG in base64; ``reproduce`` holds shell commands.
    """

    schema_version: int = SCHEMA
    title: str
    created: str
    machine: Machine
    task: str = ""
    labels: tuple[str, ...] = ()
    rungs: tuple[Rung, ...]
    best: str | None = None
    chance: float | None = Field(default=None, ge=0, le=1)
    control: float | None = Field(default=None, ge=0, le=1)
    camera: CameraSummary | None = None
    preview: str | None = None
    confusion: Confusion | None = None
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    lineage: dict[str, Any] = {}

    @property
    def control_accuracy(self) -> float | None:
        """Accuracy of the single-frame control."""
        found = [rung.accuracy for rung in self.rungs if rung.kind == "control" and rung.accuracy is not None]
        return self.control if self.control is not None else max(found, default=None)

    def rung(self, kind: str) -> Rung | None:
        """The first rung of this kind."""
        return next((rung for rung in self.rungs if rung.kind == kind), None)


def best_rung(report: Report) -> Rung | None:
    """The recommended artefact: ``report.best``, else the fastest within one point of the best accuracy.

    Only artefacts that did not fail their parity check are considered.
    """
    for rung in report.rungs:
        if report.best is not None and rung.name == report.best:
            return rung
    fit = [r for r in report.rungs if r.kind == "artefact" and r.passed is not False and r.accuracy is not None]
    top = max((r.accuracy for r in fit if r.accuracy is not None), default=0.0)
    close = [r for r in fit if r.accuracy is not None and r.accuracy >= top - _CLOSE]
    return min(close, key=lambda r: r.p50_ms if r.p50_ms is not None else float("inf"), default=None)


def pareto_front(rungs: Sequence[Rung]) -> list[Rung]:
    """Rungs that no other one beats in both accuracy and latency, fastest first.

    Controls and rungs that failed their check are no candidates.
    """
    known = [r for r in rungs if r.accuracy is not None and r.p50_ms is not None]
    fit = [r for r in known if r.kind != "control" and r.passed is not False]
    front: list[Rung] = []
    for rung in sorted(fit, key=lambda r: (r.p50_ms or 0.0, -(r.accuracy or 0.0))):
        if not front or (rung.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(rung)
    return front


def preview_of(video: Path, at: float = 0.5) -> str | None:
    """A frame of ``video`` (at this share of its length) as base64 JPEG, at most 960 pixels wide, or None."""
    cv2 = opencv()
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(capture.get(cv2.CAP_PROP_FRAME_COUNT) * at))
        good, frame = capture.read()
    finally:
        capture.release()
    if not good:
        return None
    if frame.shape[1] > 960:
        frame = cv2.resize(frame, (960, round(frame.shape[0] * 960 / frame.shape[1])), interpolation=cv2.INTER_AREA)
    good, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return base64.b64encode(data.tobytes()).decode() if good else None


def load_report(path: Path) -> Report:
    """Read ``report.json``, or the one in the folder ``path``.

    Raises:
        UserError: missing, damaged, no report, or written by a newer vidon.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"report {file} does not exist: give a report.json or the folder that holds one")
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"report {file} is not valid JSON ({error}): write it again with  vidon report") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(f"report {file} has schema {version}, this vidon reads up to {SCHEMA}: upgrade vidon")
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"report {file} is no vidon report: {where or 'top level'}: {first['msg']}") from error


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``report.md`` into ``folder`` and return the page's path.

    Raises:
        UserError: the folder cannot be written to.
    """
    from deploy.ladder import markdown
    from deploy.page import page

    writable_dir(folder)
    write_text(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_text(folder / "report.md", markdown([report]))
    return write_text(folder / "report.html", page([report]))


def write_comparison(reports: Sequence[Report], folder: Path) -> Path:
    """Write one page (``comparison.html``, ``comparison.md``) over several reports and return the page's path.

    Raises:
        UserError: no report was given, or the folder cannot be written to.
    """
    from deploy.ladder import markdown
    from deploy.page import page

    if not reports:
        raise UserError("nothing to compare: give at least one report.json")
    writable_dir(folder)
    write_text(folder / "comparison.md", markdown(reports))
    return write_text(folder / "comparison.html", page(reports))
