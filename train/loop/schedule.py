"""Optimiser, learning rate and moving average: functions of the recipe and the step alone."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from train.loop.plan import Optim

__all__ = ["Average", "make_optimizer", "put", "rate", "seeded", "snapshot"]


def seeded(*parts: int) -> torch.Generator:
    """A CPU generator that depends on the given numbers only."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine to zero.

    >>> [round(rate(step, 10, 0.2), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def make_optimizer(model: nn.Module, optim: Optim, lr_scale: Callable[[str], float]) -> torch.optim.Optimizer:
    """AdamW or SGD; parameters of equal ``scale`` and decay share a group; vectors are not decayed.

    What is frozen already stays so, and a scale of 0 freezes.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = lr_scale(name)
        parameter.requires_grad_(parameter.requires_grad and scale > 0)
        if parameter.requires_grad:
            decay = optim.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    settings = [{"params": ps, "scale": scale, "weight_decay": decay} for (scale, decay), ps in groups.items()]
    if optim.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=optim.lr, momentum=optim.momentum)
    fused = all(parameter.device.type == "cuda" for parameter in model.parameters())
    return torch.optim.AdamW(settings, lr=optim.lr, betas=optim.betas, fused=fused)


class Average:
    """Exponential moving average of the weights (Polyak & Juditsky 1992), with the usual warm-up of the decay.

    Floating tensors of the state are averaged, the others (counters) copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.state: dict[str, Tensor] = snapshot(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` finished steps."""
        decay = min(self._decay, step / (step + 9))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), 1 - decay)
            else:
                self.state[name].copy_(value)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state, sharded as the model is."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def put(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy ``state`` into the model, whose shapes and shards are the same."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
