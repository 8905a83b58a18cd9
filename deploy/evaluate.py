"""Accuracy of an artefact, through its runtime, on labelled videos: what a user of the device would get."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.contract import Array, Session, clip_answer
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track
from toolkit.video import read_pictures

__all__ = ["Evaluation", "evaluate", "mcnemar", "wilson"]


def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), good for small samples and extreme shares."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # Rounding must not push a bound past the share itself.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided McNemar test: the probability of so lopsided a difference if both were equally good."""
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    total = only_a + only_b
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2**total
    return float(min(1.0, 2 * tail))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answers for N clips: ``predicted`` and ``truth`` are indices into ``labels``; ``probabilities`` is (N, K).

    ``frame_answers`` are the indices answered at each frame; the first ``warmup`` of a clip are not yet meant to count.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    truth: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: npt.NDArray[np.float32]
    frame_answers: tuple[tuple[int, ...], ...]
    broken: tuple[str, ...] = ()
    warmup: int = 0

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each clip was answered rightly."""
        return tuple(p == t for p, t in zip(self.predicted, self.truth, strict=True))

    @property
    def accuracy(self) -> float:
        """Share of right clips."""
        return sum(self.correct) / len(self.truth)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(sum(self.correct), len(self.truth))

    def confusion(self) -> list[list[int]]:
        """counts[truth][predicted]."""
        size = len(self.labels)
        table = [[0] * size for _ in range(size)]
        for truth, predicted in zip(self.truth, self.predicted, strict=True):
            table[truth][predicted] += 1
        return table

    def agreement(self, other: "Evaluation") -> float:
        """Share of frames after the warm-up on which two artefacts name the same class, over the same clips."""
        same = total = 0
        for mine, theirs in zip(self.frame_answers, other.frame_answers, strict=True):
            answers = list(zip(mine, theirs, strict=True))
            counted = answers[min(self.warmup, len(answers) - 1) :]
            same += sum(x == y for x, y in counted)
            total += len(counted)
        return same / max(1, total)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        low, high = self.interval
        figures = {"accuracy": self.accuracy, "ci_low": low, "ci_high": high, "clips": len(self.truth)}
        per_class = {
            label: {"clips": sum(row), "recall": row[index] / sum(row) if sum(row) else None}
            for index, (label, row) in enumerate(zip(self.labels, self.confusion(), strict=True))
        }
        raw = asdict(self)
        raw["probabilities"] = [[round(float(p), 6) for p in row] for row in self.probabilities]
        return {**figures, "per_class": per_class, "confusion": self.confusion(), **raw}


def evaluate(
    session: Session, items: Sequence[tuple[Path, str]], labels: tuple[str, ...], preprocess: Preprocess,
    title: str = "evaluate",
) -> Evaluation:  # fmt: skip
    """Run every video as a stream from zero state; the clip's answer is that of the mean logits.

    ``items`` are (video, label). Unreadable videos are left out, counted and named.

    Raises:
        UserError: no video is left, or a label the model does not know.
    """
    names, truth, frames, broken = [], [], [], []
    rows: list[Array] = []
    for path, label in track(items, title):
        if label not in labels:
            raise UserError(f"label {label!r} of {path} is unknown to the model, which knows: {', '.join(labels)}")
        try:
            pictures = read_pictures(path, preprocess)
        except UserError as error:
            broken.append(str(error))
            continue
        session.reset()
        logits = np.concatenate([session.step(preprocess.normalise(picture)[None]) for picture in pictures])
        names.append(str(path))
        truth.append(labels.index(label))
        frames.append(tuple(int(k) for k in logits.argmax(1)))
        rows.append(clip_answer(logits, session.contract.warmup))
    if not rows:
        raise UserError(
            f"none of the {len(items)} videos can be read; the first: {broken[0] if broken else 'none given'}"
        )
    if broken:
        note(f"left out {len(broken)} broken of {len(items)} videos: " + "; ".join(broken[:5]))
    table = np.stack(rows)
    predicted = tuple(int(k) for k in table.argmax(1))
    warmup = session.contract.warmup
    return Evaluation(labels, tuple(names), tuple(truth), predicted, table, tuple(frames), tuple(broken), warmup)
