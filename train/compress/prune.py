"""Structured pruning of the streaming student with torch-pruning (Fang et al. 2023, arXiv:2301.12900).

The dependency graph is traced on the ``still`` form, a plain 2-D net with the same layers: tracing the clip
form fails or hangs (torch-pruning 1.6). Afterwards each online shift takes its fraction of what remains.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from toolkit.recipe import PruneConfig
from train.detect.head import BoxReadout
from train.models.readout import AverageReadout, MotionReadout
from train.models.store import follow_shapes
from train.models.student import StreamStudent

__all__ = ["prune_student"]


class _Still(nn.Module):
    def __init__(self, student: StreamStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame_BCHW: Tensor) -> Tensor:
        return self.student.still(frame_BCHW)


def prune_student(student: StreamStudent, config: PruneConfig, loss: Callable[[], Tensor] | None = None) -> None:
    """Remove ``config.ratio`` of the channels in place, widths rounded to ``config.round_to``.

    ``loss`` gives a scalar to differentiate for Taylor importance; magnitude importance needs none.
    """
    import torch_pruning as tp

    student.eval()
    still = _Still(student)
    frame = torch.randn(1, *student.frame)
    if config.importance == "taylor" and loss is not None:
        importance = tp.importance.TaylorImportance()
        student.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
    else:
        importance = tp.importance.MagnitudeImportance(p=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning 1.6 warns about its own defaults
        pruner = tp.pruner.MetaPruner(
            still, frame, importance=importance, pruning_ratio=config.ratio, round_to=config.round_to,
            ignored_layers=_outputs(student),
        )  # fmt: skip
        pruner.step()
    student.zero_grad()
    follow_shapes(student)


def _outputs(student: StreamStudent) -> list[nn.Module]:
    """The layers whose outputs are the answer."""
    readout = student.readout
    if isinstance(readout, BoxReadout):
        return [readout.head.scores, readout.head.distances, readout.head.quality]
    if isinstance(readout, AverageReadout):
        return [readout.head]
    assert isinstance(readout, MotionReadout)
    return list(readout.heads)
