"""Detectors on the device: boxes of an artefact's answers, their agreement with the float model, and their precision.

The precision is COCO's, of the exported file, through its runtime, stepped as the camera loop steps it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.boxed import read_boxed
from toolkit.coco import BoxData, FrameBoxes
from toolkit.contract import Array, Contract, Session
from toolkit.detection import EVERY, Found, decode, overlaps
from toolkit.errors import UserError
from toolkit.precision import BoxPrecision, box_precision
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track

__all__ = ["BoxEvaluation", "agreement", "evaluate_boxes", "found_in"]


def found_in(answer_N: Array, contract: Contract, score: float | None = None) -> Found:
    """Boxes of one answer, in pixels of the model's picture.

    Raises:
        UserError: the model answers with classes.
    """
    if contract.detection is None:
        raise UserError("this bundle classifies: it has no boxes")
    return decode(answer_N, contract.classes, contract.detection, score)


def agreement(got_TN: Array, want_TN: Array, contract: Contract) -> float:
    """Share of boxes that two artefacts agree on: same class, overlap of a half or more, counted both ways.

    A box above the score threshold in one may be at half the threshold in the other: it must not flicker, not be equal.
    """
    assert contract.detection is not None
    least, matched, total = contract.detection.score, 0, 0
    for got, want in zip(got_TN, want_TN, strict=True):
        mine, theirs = found_in(got, contract, least / 2), found_in(want, contract, least / 2)
        for sure, other in ((mine.above(least), theirs), (theirs.above(least), mine)):
            matched += int(_matched(sure, other).sum())
            total += len(sure)
    return matched / total if total else 1.0


def _matched(a: Found, b: Found) -> npt.NDArray[np.bool_]:
    """Which boxes of ``a`` (M,) have a partner in ``b``."""
    same = a.labels[:, None] == b.labels[None]
    return np.asarray(((overlaps(a.boxes, b.boxes) >= 0.5) & same).any(1), np.bool_)


@dataclass(frozen=True, slots=True)
class BoxEvaluation:
    """precision: COCO's; broken: files left out, with the reason; unseen: annotated frames that no step fell on."""

    precision: BoxPrecision
    broken: tuple[str, ...] = ()
    unseen: int = 0

    @property
    def summary(self) -> str:
        """One line for people."""
        p = self.precision
        per_class = ", ".join(f"{name} {value:.3f}" for name, value in p.per_class.items())
        return f"AP {p.ap:.3f}, AP50 {p.ap50:.3f} ({per_class}) on {p.boxes} boxes in {p.frames} frames"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**self.precision.as_dict(), **{k: v for k, v in asdict(self).items() if k != "precision"}}


def evaluate_boxes(
    session: Session, data: BoxData, split: str, preprocess: Preprocess, title: str = "evaluate"
) -> BoxEvaluation:
    """Run every video of a split as a stream from zero state and compare each annotated frame.

    Unreadable files are left out, counted and named.

    Raises:
        UserError: nothing can be read.
    """
    truth: list[FrameBoxes] = []
    found: list[Found] = []
    broken: list[str] = []
    unseen = 0
    footage = data.split(split)
    for part in track(footage, title):
        session.reset()
        pairs: list[tuple[FrameBoxes, Found]] = []
        try:
            for seen in read_boxed(part, preprocess):
                answer = session.step(preprocess.normalise(seen.picture)[None])[0]
                if seen.truth is not None:
                    pairs.append((seen.truth, found_in(answer, session.contract, EVERY)))
        except UserError as error:
            broken.append(str(error))
            continue
        unseen += len(part.frames) - len(pairs)
        truth += [pair[0] for pair in pairs]
        found += [pair[1] for pair in pairs]
    if not truth:
        raise UserError(f"no annotated frame of {data.path} can be used; {_first(broken)}")
    if broken:
        note(f"left out {len(broken)} of {len(footage)} files: " + "; ".join(broken[:5]))
    return BoxEvaluation(box_precision(truth, found, data.labels), tuple(broken), unseen)


def _first(broken: Sequence[str]) -> str:
    return f"the first: {broken[0]}" if broken else "no step of the model falls on one: check fps"
