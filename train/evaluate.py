"""How good a torch model is on a split: what a training stage reports, and the rungs before export.

One view is the central window of a clip; many views are windows spread over its time and over its longer side,
whose logits are averaged (Wang et al. 2018, arXiv:1711.07971). N clips, V views, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.preprocess import FrameSampler, Preprocess
from toolkit.progress import note, track
from toolkit.video import read_frames
from train.compress.distill import clip_logits
from train.data.batch import Source
from train.data.clips import normalise
from train.data.index import Dataset
from train.models.store import Model
from train.tasks.classification import Classification, mean_precision

__all__ = ["Answers", "answer", "answer_views", "clip_answers", "cut_views", "judge_split"]


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


def answer(model: Model, data: Source, preprocess: Preprocess, batch: int = 32) -> Answers:
    """Answer for every clip, in eval mode; the model's own mode is kept."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    answers, labels = [], []
    with torch.no_grad():
        for start in range(0, len(data), batch):
            given = data.batch(range(start, min(start + batch, len(data))), 0)
            answers.append(clip_answers(model, normalise(given.first, preprocess).to(device)))
            labels.append(given.labels)
    model.train(training)
    return Answers(torch.cat(answers).float().cpu().numpy(), torch.cat(labels).numpy())


def answer_views(
    model: Model, videos: Sequence[tuple[Path, Any]], preprocess: Preprocess, views: tuple[int, int] = (1, 1)
) -> Answers:
    """Answer for every video, given with its class index or multi-hot row, from the mean logits of all its views.

    Unreadable videos are left out, counted and named.

    Raises:
        UserError: no video is left, or views that the preprocessing cannot cut.
    """
    frames = model.contract().frames
    rows, labels, broken = [], [], []
    model.eval()
    for path, label in track(videos, "evaluate"):
        try:
            pictures_VTHWC = cut_views(path, preprocess, frames, *views)
        except UserError as error:
            broken.append(str(error))
            continue
        with torch.no_grad():
            rows.append(clip_answers(model, normalise(pictures_VTHWC, preprocess)).mean(0))
        labels.append(label)
    if not rows:
        raise UserError(f"none of the {len(videos)} videos can be answered: {broken[0] if broken else 'none given'}")
    if broken:
        note(f"left out {len(broken)} broken of {len(videos)} videos: " + "; ".join(broken[:5]))
    return Answers(torch.stack(rows).numpy(), np.asarray(labels))


def judge_split(
    model: Model, data: Dataset, split: str, preprocess: Preprocess, views: tuple[int, int] = (1, 1),
    figures: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Every figure of the task on one split; its pictures go to the folder ``figures``.

    Raises:
        UserError: the split has no clip, or none that can be read.
    """
    videos = [(clip.path, data.labels.index(clip.label)) for clip in data.split(split)]
    answers = answer_views(model, videos, preprocess, views)
    task = Classification(data.labels, answers.multi_label)
    if figures is not None:
        task.figures(figures, answers.logits, answers.labels)
    return {**task.metrics(answers.logits, answers.labels), "split": split, "views": list(views)}


def cut_views(
    path: Path, preprocess: Preprocess, frames: int, temporal: int = 1, spatial: int = 1
) -> npt.NDArray[np.uint8]:
    """Every view of a video: uint8 RGB (temporal * spatial, frames, H, W, 3); 1 and 1 is the central one.

    ``temporal`` windows start evenly from the video's first picture to its last window; ``spatial`` = 3 crops both
    ends and the middle of the longer side.

    Raises:
        UserError: as :func:`toolkit.video.read_frames`; ``spatial`` without ``fit = "crop"``.
    """
    if spatial not in (1, 3):
        raise UserError(f"{spatial} spatial views: 1 (the middle) or 3 (both ends too)")
    if spatial == 3 and preprocess.fit != "crop":
        raise UserError('3 spatial views need preprocess.fit = "crop": a stretched picture shows the whole frame')
    sampler = FrameSampler(preprocess.fps)
    crops: list[list[npt.NDArray[np.uint8]]] = [[] for _ in range(spatial)]
    for stamp_s, frame in read_frames(path):
        due = sampler.due(stamp_s)
        if due:
            for crop, part in zip(crops, _parts(frame, preprocess, spatial), strict=True):
                crop.extend([preprocess.picture(part)] * due)
    pictures_STHWC = np.stack([np.stack(crop) for crop in crops])
    return np.concatenate(list(_windows(pictures_STHWC, frames, temporal)))


def _parts(frame_HWC: npt.NDArray[np.uint8], preprocess: Preprocess, spatial: int) -> list[npt.NDArray[np.uint8]]:
    """The frame itself, whose middle the preprocessing takes; between its two ends along the longer side if asked."""
    if spatial == 1:
        return [frame_HWC]
    rows, cols = frame_HWC.shape[:2]
    scale = max(preprocess.size[0] / rows, preprocess.size[1] / cols)
    crop_rows, crop_cols = (
        min(side, round(size / scale)) for side, size in zip((rows, cols), preprocess.size, strict=True)
    )
    first, last = frame_HWC[:crop_rows, :crop_cols], frame_HWC[rows - crop_rows :, cols - crop_cols :]
    return [first, frame_HWC, last]


def _windows(pictures_STHWC: npt.NDArray[np.uint8], frames: int, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """``count`` windows over time; one is central, as in training; a short video repeats its last picture."""
    missing = frames - pictures_STHWC.shape[1]
    if missing > 0:
        pictures_STHWC = np.concatenate([pictures_STHWC, np.repeat(pictures_STHWC[:, -1:], missing, 1)], 1)
    spare = pictures_STHWC.shape[1] - frames
    starts = [spare // 2] if count == 1 else np.linspace(0, spare, count).round().astype(int).tolist()
    for start in starts:
        yield pictures_STHWC[:, start : start + frames]
