"""How good a torch model is on a split: what a training stage reports, and the rungs before export.

N clips, V views, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track
from train.compress.distill import clip_logits
from train.data.batch import Source
from train.data.clip import Clip
from train.data.clips import normalise
from train.data.index import Dataset
from train.data.targets import Targets
from train.data.views import cut_views
from train.models.store import Model
from train.tasks.classification import Classification, mean_precision

__all__ = ["Answers", "answer", "answer_views", "clip_answers", "judge_split"]


@dataclass(frozen=True, slots=True)
class Answers:
    """logits: float32 (N, K), the clip answers; labels: int64 (N,), or multi-hot float32 (N, K)."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have any number of labels."""
        return self.labels.ndim == 2

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """True where the clip was answered rightly, in every label (N,)."""
        if self.multi_label:
            return np.asarray(((self.logits > 0) == (self.labels > 0.5)).all(1))
        return np.asarray(self.logits.argmax(1) == self.labels)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())

    @property
    def score(self) -> float:
        """What weights are chosen by: accuracy, or mean average precision with many labels."""
        return mean_precision(self.logits, self.labels) if self.multi_label else self.accuracy


def clip_answers(model: Model, clips_BTCHW: Tensor) -> Tensor:
    """Clip logits (B, K) of a clip model, or of a student over its frames after the warm-up."""
    contract = model.contract()
    if contract.kind == "clip":
        logits: Tensor = model(clips_BTCHW.transpose(1, 2))
        return logits
    return clip_logits(model(clips_BTCHW), contract.warmup)


def answer(
    model: Model, data: Source, preprocess: Preprocess, batch: int = 32,
    how: Callable[[Model, Tensor], Tensor] = clip_answers,
) -> Answers:  # fmt: skip
    """Answer for every clip, in eval mode; the model's own mode is kept. ``how`` answers for clips (B, T, C, H, W).

    A source that replaces a broken clip by another says so in the batch's indices: such a row is left out, lest the
    other clip count twice.

    Raises:
        UserError: every clip is broken.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    answers, labels = [], []
    with torch.no_grad():
        for start in range(0, len(data), batch):
            asked = torch.arange(start, min(start + batch, len(data)))
            given = data.batch(asked.tolist(), 0)
            own = given.indices == asked
            if bool(own.any()):
                answers.append(how(model, normalise(given.first[own], preprocess).to(device)))
                labels.append(given.labels[own])
    model.train(training)
    if not answers:
        raise UserError(f"none of the {len(data)} videos can be answered: all of them are broken")
    return Answers(torch.cat(answers).float().cpu().numpy(), torch.cat(labels).numpy())


def answer_views(
    model: Model, clips: Sequence[Clip], labels: npt.NDArray[Any], preprocess: Preprocess,
    views: tuple[int, int] = (1, 1),
) -> Answers:  # fmt: skip
    """Answer for every clip by the mean logits of all its views; ``labels`` are theirs, (N,) or multi-hot (N, K).

    Unreadable clips are left out, counted and named.

    Raises:
        UserError: no clip is left, or views that the preprocessing cannot cut.
    """
    frames, device = model.contract().frames, next(model.parameters()).device
    rows, good, broken = [], [], []
    model.eval()
    for index, clip in enumerate(track(clips, "evaluate")):
        try:
            pictures_VTHWC = cut_views(clip, preprocess, frames, *views)
        except UserError as error:
            broken.append(str(error))
            continue
        with torch.no_grad():
            rows.append(clip_answers(model, normalise(pictures_VTHWC, preprocess).to(device)).mean(0))
        good.append(index)
    if not rows:
        raise UserError(f"none of the {len(clips)} videos can be answered: {broken[0] if broken else 'none given'}")
    if broken:
        note(f"left out {len(broken)} broken of {len(clips)} videos: " + "; ".join(broken[:5]))
    return Answers(torch.stack(rows).float().cpu().numpy(), labels[good])


def judge_split(
    model: Model, data: Dataset, split: str, preprocess: Preprocess, views: tuple[int, int] = (1, 1),
    figures: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Every figure of the task on one split; its pictures go to the folder ``figures``.

    Raises:
        UserError: the split has no clip, or none that can be read.
    """
    clips = data.split(split)
    answers = answer_views(model, clips, Targets.of(data, clips).labels, preprocess, views)
    task = Classification(data.labels, answers.multi_label)
    if figures is not None:
        task.figures(figures, answers.logits, answers.labels)
    return {**task.metrics(answers.logits, answers.labels), "split": split, "views": list(views)}
