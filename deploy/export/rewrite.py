"""Operators that an NPU compiler leaves to the processor, written as others that it takes; the answers stay the same.

Works while the step is traced: whatever calls ``mean`` over the picture gets an average pooling, ``abs`` becomes
``relu(x) + relu(-x)``. Tried with litert-torch 0.10 and Vela 5.2: the mean came out over a transposed map, which Vela
does not place, and the quantiser keeps ABS in float.
"""

from typing import Any

__all__ = ["for_npu"]


def for_npu(step: Any) -> Any:
    """The same step, without those operators."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Rewriting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            if func in (torch.Tensor.abs, torch.abs):
                return functional.relu(args[0]) + functional.relu(-args[0])
            if func in (torch.Tensor.mean, torch.mean) and _over_the_picture(args, options):
                x = args[0]
                pooled = functional.avg_pool2d(x, (int(x.shape[2]), int(x.shape[3])))
                return pooled if options.get("keepdim") or True in args[2:] else torch.flatten(pooled, 1)
            return func(*args, **options)

    class Rewritten(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, *values: Any) -> Any:
            with Rewriting():
                return self.step(*values)

    return Rewritten().eval()


def _over_the_picture(args: Any, options: Any) -> bool:
    """Whether a mean is over height and width of (B, C, H, W)."""
    axes = options.get("dim", args[1] if len(args) > 1 else None)
    return args[0].ndim == 4 and axes is not None and tuple(axes) in {(2, 3), (-2, -1)}
