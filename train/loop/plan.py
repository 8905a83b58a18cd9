"""What a training stage hands to the loop, and what it gets back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.recipe import RunConfig
from train.data.batch import Batch

__all__ = ["BatchLoss", "Fit", "Plan"]

#: Maps a batch to a scalar, or to named scalars: "loss" is minimised, the others are only logged. The batch lies on
#: the training device, the generator on the CPU (the same draws on every device).
BatchLoss = Callable[[Batch, torch.Generator], Tensor | dict[str, Tensor]]


class Optim(Protocol):
    """The optimiser settings of a recipe section."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def momentum(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def ema(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One training stage.

    label: shown on the bar. model: all that is trained and saved, trained in place. loss: see ``BatchLoss``; it may
    call any method of ``model``. validate: an accuracy (higher is better) of the model as it then is; the best
    weights win. lr_scale: a parameter's name -> factor of the learning rate (0 freezes it). every_s: overrides
    ``run.save_every_s``. views: clips of each video in a batch. run: the recipe's [run] section. beside: modules the
    loss uses that are neither trained nor saved (a teacher): moved to the device, kept in eval mode. after_step:
    called with the number of finished steps after each optimiser step (momentum encoders).
    """

    label: str
    model: nn.Module
    loss: BatchLoss
    optim: Optim
    validate: Callable[[], float] | None = None
    lr_scale: Callable[[str], float] = field(default=lambda name: 1.0)
    every_s: float | None = None
    views: int = 1
    run: RunConfig = field(default_factory=RunConfig)
    beside: tuple[nn.Module, ...] = ()
    after_step: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """losses: mean loss of each epoch; validation: accuracy after each; best: the best of them, if validated."""

    losses: tuple[float, ...]
    validation: tuple[float, ...]
    best: float | None
