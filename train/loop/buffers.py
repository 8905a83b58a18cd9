"""Shared memory that worker processes decode into, again and again: the kernel clears its pages once, not every batch.

A buffer is lent to one batch, and is free again when the last tensor that looks at the batch's pictures is gone. So
whoever keeps a batch keeps its buffer, and the next batches come in new memory if no buffer is left.
"""

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Buffers"]

#: A process that starts may be given no more than about 250 open files, and each buffer is one.
_MOST = 128


class Buffers:
    """At most ``count`` buffers for pictures: uint8 of ``shape``, whose first axis counts videos."""

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        self.tensors = tuple(_shared(shape) for _ in range(min(count, _MOST)))
        self._free = deque(range(len(self.tensors)))  # its methods are safe in any thread, as finalizers need

    def take(self, videos: int) -> int | None:
        """The number of a free buffer that is large enough, if any; it is taken until what was lent of it is gone."""
        return self._free.popleft() if self._free and videos <= len(self.tensors[0]) else None

    def lend(self, number: int, videos: int) -> npt.NDArray[np.uint8]:
        """The first ``videos`` of a buffer that was taken."""
        array: npt.NDArray[np.uint8] = self.tensors[number].numpy()[:videos]
        # A tensor made of an array holds that very array as long as anything looks at its memory.
        weakref.finalize(array, self._free.append, number).atexit = False
        return array


def _shared(shape: Sequence[int]) -> Tensor:
    """Shared memory none of whose pages is touched yet (``Tensor.share_memory_`` would write all of them)."""
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(tuple(shape))
