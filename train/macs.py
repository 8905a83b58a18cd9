"""Parameters and multiply-accumulates, counted while the model runs once.

Convolutions, linear layers and attention products count; norms, activations and additions do not (the usual
convention of the field; 1 MAC = 2 FLOPs).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.models.store import Model
from train.models.vit import Block

__all__ = ["Size", "measure"]


@dataclass(frozen=True, slots=True)
class Size:
    """parameters of the whole model; macs per frame (stream model) or per clip (clip model)."""

    parameters: int
    macs: int


def measure(model: Model) -> Size:
    """Count a stream model's step or a clip model's clip."""
    contract = model.contract()
    total = [0]

    def conv(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Conv3d)
        total[0] += output.numel() * module.weight[0].numel()

    def linear(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        total[0] += output.numel() * module.in_features

    def attention(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        batch, tokens, dim = inputs[0].shape
        total[0] += 2 * batch * tokens * tokens * dim

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            hooks.append(module.register_forward_hook(conv))
        elif isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(linear))
        elif isinstance(module, Block):
            hooks.append(module.register_forward_hook(attention))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if contract.kind == "clip":
                model(torch.zeros(1, *contract.input_shape))
            else:
                model.step(torch.zeros(1, *contract.frame), [torch.zeros(1, *s.shape) for s in contract.states])  # type: ignore[operator]
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Size(sum(parameter.numel() for parameter in model.parameters()), total[0])
