"""Accuracy of an artefact, through its runtime, on labelled videos: what a user of the device would get."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.contract import Array, Session, clip_answer
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import track
from toolkit.statistics import mcnemar, wilson
from toolkit.video import read_pictures

__all__ = ["Evaluation", "Read", "alike", "evaluate", "mcnemar", "run_clips", "wilson"]

#: Decodes one video: uint8 pictures (T, H, W, 3).
Read = Callable[[Any, Preprocess], npt.NDArray[np.uint8]]
Frames = Sequence[Sequence[Any]]  # of each clip, the answer at each frame


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
        return alike(self.frame_answers, other.frame_answers, self.warmup)

    @property
    def summary(self) -> str:
        """One line for people."""
        low, high = self.interval
        return f"accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] on {len(self.truth)} clips"

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


def alike(mine: Frames, theirs: Frames, warmup: int) -> float:
    """Share of the frames after the warm-up on which the answers are the same, over the same clips."""
    same = total = 0
    for own, other in zip(mine, theirs, strict=True):
        answers = list(zip(own, other, strict=True))
        counted = answers[min(warmup, len(answers) - 1) :]
        same += sum(x == y for x, y in counted)
        total += len(counted)
    return same / max(1, total)


def evaluate(
    session: Session, items: Sequence[tuple[Any, str]], labels: tuple[str, ...], preprocess: Preprocess,
    title: str = "evaluate", read: Read = read_pictures,
) -> Evaluation:  # fmt: skip
    """Run every video as a stream from zero state; the clip's answer is that of the mean logits.

    ``items`` are (video, label); ``read`` decodes one. Unreadable videos are left out; ``broken`` names them.

    Raises:
        UserError: no video is left, or a label the model does not know.
    """
    for video, label in items:
        if label not in labels:
            raise UserError(f"label {label!r} of {video} is unknown to the model, which knows: {', '.join(labels)}")
    good, answers, broken = run_clips(session, [video for video, _ in items], preprocess, title, read)
    warmup = session.contract.warmup
    table = np.stack([clip_answer(logits_TK, warmup, session.contract.answer) for logits_TK in answers])
    return Evaluation(
        labels, tuple(str(items[index][0]) for index in good), tuple(labels.index(items[index][1]) for index in good),
        tuple(int(k) for k in table.argmax(1)), table,
        tuple(tuple(int(k) for k in logits_TK.argmax(1)) for logits_TK in answers), broken, warmup,
    )  # fmt: skip


def run_clips(
    session: Session, videos: Sequence[Any], preprocess: Preprocess, title: str, read: Read
) -> tuple[list[int], list[Array], tuple[str, ...]]:
    """Which videos could be read, the logits (T, K) of each, and what is wrong with the others.

    Raises:
        UserError: no video is left.
    """
    good: list[int] = []
    answers: list[Array] = []
    broken: list[str] = []
    for index, video in enumerate(track(videos, title)):
        try:
            pictures = read(video, preprocess)
        except UserError as error:
            broken.append(str(error))
            continue
        session.reset()
        answers.append(np.concatenate([session.step(preprocess.normalise(picture)[None]) for picture in pictures]))
        good.append(index)
    if not good:
        raise UserError(
            f"none of the {len(videos)} videos can be read; the first: {broken[0] if broken else 'none given'}"
        )
    return good, answers, tuple(broken)
