"""A detector on a clip encoder: the same head on the encoder's feature maps, boxes for every frame of the clip.

An encoder strides over time too, so each of its T' feature maps answers for the T / T' frames it covers: the head has
one set of outputs for each. Encoders with ``tokens`` on a grid are read as feature maps.
Shapes: B batch, T frames, D width, N numbers of an answer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.contract import Contract
from toolkit.detection import DetectionSpec, Level
from toolkit.errors import UserError
from toolkit.recipe import BoxesConfig
from train.detect.head import DetectHead

__all__ = ["ClipDetector"]


class ClipDetector(nn.Module):
    """``encoder`` has ``forward_features`` giving maps (B, D, T', h, w), or tokens (B, N, D) with ``grid`` (T', h, w).

    ``forward`` answers for the last frame, as a clip model in a window of frames must; ``frames_answer`` for all.

    Raises:
        UserError: the encoder merges tokens, or its maps do not share the frames out evenly.
    """

    def __init__(self, encoder: Any, classes: int, boxes: BoxesConfig) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, classes
        contract: Contract = encoder.contract()
        self.frame, self.frames = contract.frame, contract.frames
        if getattr(getattr(encoder, "config", None), "merge", 0):
            raise UserError("teacher.merge joins tokens, and a detector looks at every place: set teacher.merge to 0")
        training = encoder.training
        encoder.eval()  # or a clip of nothing would count in the batch norms' statistics
        with torch.no_grad():
            maps = self.maps(torch.zeros(1, *contract.input_shape))
        encoder.train(training)
        _, width, times, rows, cols = maps.shape
        if self.frames % times:
            raise UserError(
                f"the encoder makes {times} maps of {self.frames} frames, and each answers for as many: "
                f"set data.frames to a multiple of {times}, for example {-(-self.frames // times) * times}"
            )
        stride = round(self.frame[1] / rows)
        # One level: a clip encoder's map is as coarse as its patches.
        self.spec = DetectionSpec(
            levels=(Level(stride=stride, rows=rows, cols=cols),), score=boxes.score, overlap=boxes.overlap
        )
        one = boxes.model_copy(update={"levels": 1})
        self.heads = nn.ModuleList(DetectHead(width, classes, one) for _ in range(self.frames // times))

    def contract(self) -> Contract:
        """A clip model's contract; its answer is a detector's."""
        return Contract(
            kind="clip", frame=self.frame, classes=self.classes, frames=self.frames, detection=self.spec
        )  # fmt: skip

    def maps(self, clip_BCTHW: Tensor) -> Tensor:
        """Feature maps (B, D, T', h, w)."""
        features: Tensor = self.encoder.forward_features(clip_BCTHW)
        if features.ndim == 5:
            return features
        times, rows, cols = self.encoder.grid
        return features.transpose(1, 2).reshape(len(features), -1, times, rows, cols)

    def frames_answer(self, clip_BCTHW: Tensor) -> Tensor:
        """Answers for every frame (B, T, N)."""
        maps = self.maps(clip_BCTHW)
        batch, _, times = maps.shape[:3]
        folded = maps.transpose(1, 2).flatten(0, 1)
        answers = torch.stack([head(folded) for head in self.heads], 1)
        return answers.reshape(batch, times * len(self.heads), -1)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """The answer for the last frame (B, N)."""
        answer: Tensor = self.heads[-1](self.maps(clip_BCTHW)[:, :, -1])
        return answer
