"""One tensor from the parts of all processes, for losses that compare the clips of a whole batch.

Gradients flow back to the process that a row came from, summed over the processes that used it. Data parallelism then
takes the mean over processes, as it does of everything: so each process returns the mean over its own rows, and the
gradient is that of one process with the whole batch (as in SimCLR, arXiv:2002.05709, and MoCo v3, arXiv:2104.02057).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.data.batch import Batch

__all__ = ["of_all"]


def of_all(part: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """The rows of all processes in their order (K, ...), and the place of this process's first row among them.

    ``part`` has one row for each video of the batch. Every process must call it, as often as the others.
    """
    if len(batch.shares) < 2:
        return part, 0
    start = sum(batch.shares[: torch.distributed.get_rank()])
    gathered: Tensor = _Gathered.apply(part, batch.shares, start)  # type: ignore[no-untyped-call]
    return gathered, start


class _Gathered(torch.autograd.Function):
    """Shares differ by a row: all are padded to the largest, which is known without asking anybody."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shares: tuple[int, ...], start: int) -> Tensor:
        ctx.place = slice(start, start + len(part))
        missing = max(shares) - len(part)
        padded = functional.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)).contiguous()
        parts = [torch.empty_like(padded) for _ in shares]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([rows[:share] for rows, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        total = slopes[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total[ctx.place], None, None
