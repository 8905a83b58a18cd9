"""Several objectives train one encoder: the loss is their weighted sum.

It is the one owner of the encoder; its state (projectors, decoders, discriminator, momentum weights, queue) is in
its ``state_dict``, so a checkpoint of it continues exactly.
"""

from collections.abc import Mapping

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from train.data.batch import Batch
from train.objectives.features import Encoder
from train.objectives.registry import build_objective

__all__ = ["Mixture"]


class Mixture(nn.Module):
    """Clips (B, V, C, T, H, W) -> "loss" and its parts, named ``objective`` and ``objective.part``."""

    def __init__(
        self, encoder: Encoder, weights: Mapping[str, float], configs: Mapping[str, BaseModel],
        clip: tuple[int, int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        assert isinstance(encoder, nn.Module)
        self.encoder = encoder
        self.weights = dict(weights)
        self.objectives = nn.ModuleDict({n: build_objective(n, encoder, configs[n], clip) for n in weights})
        self.views = max(int(objective.views) for objective in self.objectives.values())  # type: ignore[arg-type]

    def after_step(self, step: int) -> None:
        """What follows the encoder, follows it now: called after each optimiser step."""
        for objective in self.objectives.values():
            follow = getattr(objective, "follow", None)
            if follow is not None:
                follow()

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """Each objective draws from the generator in the recipe's order."""
        found: dict[str, Tensor] = {"loss": clips_BVCTHW.new_zeros(())}
        for name, objective in self.objectives.items():
            parts = objective(clips_BVCTHW, generator, batch)
            found["loss"] = found["loss"] + self.weights[name] * parts["loss"]
            found[name] = parts["loss"].detach()
            found |= {f"{name}.{part}": value.detach() for part, value in parts.items() if part != "loss"}
        return found
