"""Figures of an artefact whose clips may have any number of labels: each label is judged for itself, by its logistic.

Shapes: N clips, T frames, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.evaluate import Read, alike, run_clips
from toolkit.contract import Array, Session, clip_logits, probabilities
from toolkit.errors import UserError
from toolkit.many import judge_many
from toolkit.preprocess import Preprocess
from toolkit.video import read_pictures

__all__ = ["ManyEvaluation", "evaluate_many"]


@dataclass(frozen=True, slots=True)
class ManyEvaluation:
    """``logits`` (N, K) are those of whole clips, ``truth`` bool (N, K); a label is named above probability 0.5.

    ``frame_answers`` hold the labels named at each frame, as indices into ``labels``.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    truth: npt.NDArray[np.bool_]
    logits: Array
    frame_answers: tuple[tuple[tuple[int, ...], ...], ...]
    broken: tuple[str, ...] = ()
    warmup: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """``map``, ``exact`` with its interval, ``f1`` and ``per_class``, as after training."""
        return judge_many(self.logits, self.truth, self.labels)

    @property
    def accuracy(self) -> float:
        """Share of clips with every label right."""
        return float(self.figures["exact"])

    @property
    def summary(self) -> str:
        """One line for people."""
        row = self.figures
        return (f"mAP {row['map']:.3f}, every label right {row['exact']:.3f} [{row['ci_low']:.3f}, "
                f"{row['ci_high']:.3f}] on {row['clips']} clips")  # fmt: skip

    def agreement(self, other: "ManyEvaluation") -> float:
        """Share of frames after the warm-up on which two artefacts name the same labels, over the same clips."""
        return alike(self.frame_answers, other.frame_answers, self.warmup)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; ``truth`` and ``predicted`` are the labels' indices."""
        return {
            **self.figures, "accuracy": self.accuracy, "labels": self.labels, "names": self.names,
            "truth": _named(self.truth), "predicted": _named(self.logits > 0),
            "probabilities": [[round(float(p), 6) for p in row] for row in probabilities(self.logits, "many")],
            "frame_answers": self.frame_answers, "broken": self.broken, "warmup": self.warmup,
        }  # fmt: skip


def evaluate_many(
    session: Session, items: Sequence[tuple[Any, Sequence[str]]], labels: tuple[str, ...], preprocess: Preprocess,
    title: str = "evaluate", read: Read = read_pictures,
) -> ManyEvaluation:  # fmt: skip
    """Run every video as a stream from zero state; ``items`` are (video, its labels).

    Raises:
        UserError: no video is left, or a label the model does not know.
    """
    for video, wanted in items:
        for label in wanted:
            if label not in labels:
                raise UserError(f"label {label!r} of {video} is unknown to the model, which knows: {', '.join(labels)}")
    good, answers, broken = run_clips(session, [video for video, _ in items], preprocess, title, read)
    warmup = session.contract.warmup
    truth = np.asarray([[label in items[index][1] for label in labels] for index in good])
    return ManyEvaluation(
        labels, tuple(str(items[index][0]) for index in good), truth,
        np.stack([clip_logits(logits_TK, warmup) for logits_TK in answers]),
        tuple(_named(logits_TK > 0) for logits_TK in answers), broken, warmup,
    )  # fmt: skip


def _named(chosen_NK: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(k) for k in np.flatnonzero(row)) for row in chosen_NK)
