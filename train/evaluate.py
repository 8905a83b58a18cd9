"""Accuracy of a torch model on a split: what a training stage reports, and the rungs before export."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from toolkit.preprocess import Preprocess
from train.compress.distill import clip_logits
from train.data.clips import Pictures, normalise
from train.models.store import Model

__all__ = ["Answers", "answer"]


@dataclass(frozen=True, slots=True)
class Answers:
    """logits: float32 (N, K), the clip answers; labels: int64 (N,)."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """True where the clip was answered rightly (N,)."""
        return np.asarray(self.logits.argmax(1) == self.labels)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())


def answer(model: Model, data: Pictures, preprocess: Preprocess, batch: int = 32) -> Answers:
    """Answer for every clip, in eval mode; the model's own mode is kept."""
    contract = model.contract()
    training, device = model.training, next(model.parameters()).device
    model.eval()
    answers = []
    with torch.no_grad():
        for start in range(0, len(data), batch):
            clips = normalise(data.pictures[start : start + batch], preprocess).to(device)
            if contract.kind == "clip":
                answers.append(model(clips.transpose(1, 2)))
            else:
                answers.append(clip_logits(model(clips), contract.warmup))
    model.train(training)
    return Answers(torch.cat(answers).float().cpu().numpy(), data.labels)
