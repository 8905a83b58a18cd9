"""Parameters and multiply-accumulates, counted while the model runs once.

Convolutions, linear layers and matrix products, those of attention too, count; norms, activations and additions do
not (the usual convention of the field, where 1 MAC is often called 1 FLOP; a counter of single operations gives 2).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from train.models.store import Model

__all__ = ["Size", "measure"]


@dataclass(frozen=True, slots=True)
class Size:
    """parameters of the whole model; macs per frame (stream model) or per clip (clip model)."""

    parameters: int
    macs: int


def measure(model: Model) -> Size:
    """Count a stream model's step or a clip model's clip, on the model's own device (``meta`` is fastest)."""
    contract = model.contract()
    device = next(iter(itertools.chain(model.parameters(), model.buffers()))).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _Counter() as counter:
            if contract.kind == "clip":
                model(torch.zeros(1, *contract.input_shape, device=device))
            else:
                states = [torch.zeros(1, *state.shape, device=device) for state in contract.states]
                model.step(torch.zeros(1, *contract.frame, device=device), states)  # type: ignore[operator]
    finally:
        model.train(training)
    return Size(sum(parameter.numel() for parameter in model.parameters()), counter.macs)


class _Counter(TorchFunctionMode):
    """Adds up the multiply-accumulates of every counted function that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, then count it."""
        output = func(*args, **(kwargs or {}))
        count = _COUNTED.get(func)
        if count is not None:
            self.macs += count(output, *args[:3])
        return output


def _convolution(output: Tensor, _: Tensor, weight: Tensor, *__: Any) -> int:
    return output.numel() * math.prod(weight.shape[1:])


def _linear(output: Tensor, _: Tensor, weight: Tensor, *__: Any) -> int:
    return output.numel() * weight.shape[1]


def _matmul(output: Tensor, left: Tensor, *_: Any) -> int:
    return output.numel() * left.shape[-1]


def _attention(output: Tensor, query: Tensor, key: Tensor, *_: Any) -> int:
    """Queries times keys, and weights times values."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + output.shape[-1])


_COUNTED: dict[Any, Callable[..., int]] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    functional.linear: _linear,
    functional.scaled_dot_product_attention: _attention,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.bmm: _matmul,
    Tensor.bmm: _matmul,
}
