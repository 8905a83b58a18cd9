"""What the processes of a run tell each other about their data: which videos each has met, and which are broken.

Each process decodes its own part of a batch, but the share of broken videos is one of the whole data, and a process
that cannot go on must not leave the others waiting for it. So after each part all of them know what one process with
the whole batch would: they count the same, and if too much is broken they end at the same step with the same words.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from train.data.batch import Batch

__all__ = ["Tidings"]


class Tidings:
    """Every process makes one, and calls :meth:`join` or :meth:`fail` for each part, as often as the others."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        gloo = torch.distributed.get_backend() == "gloo"
        self._group = None if gloo else _on_cpu(torch.distributed.group.WORLD)

    def join(self, batch: Batch, shares: Sequence[int]) -> Batch:
        """The batch with ``indices`` and ``left_out`` of all processes; ``shares`` are the videos of each.

        Raises:
            UserError: another process cannot go on.
        """
        news = {place: why for place, why in batch.left_out.items() if place not in self._told}
        met, told = self._exchange(batch.indices, shares, {str(place): why for place, why in news.items()})
        left_out = {int(place): why for part in told for place, why in part.items()}
        self._told |= left_out.keys()
        return replace(batch, indices=met, left_out=left_out)

    def fail(self, error: UserError, shares: Sequence[int]) -> None:
        """Tell the others why this process cannot go on.

        Raises:
            UserError: always; where several cannot, the first one's reason in all of them.
        """
        self._exchange(torch.zeros(0, dtype=torch.int64), shares, {"error": str(error)})

    def _exchange(
        self, met: Tensor, shares: Sequence[int], news: Mapping[str, str]
    ) -> tuple[Tensor, list[dict[str, str]]]:
        """Places that were met, of all processes, and the news of each; without news one small message goes around."""
        text = json.dumps(news).encode() if news else b""
        row = torch.full((max(shares) + 1,), -1)
        row[0], row[1 : len(met) + 1] = len(text), met
        rows = torch.stack(self._all(row, len(shares)))
        told: list[dict[str, str]] = []
        if longest := int(rows[:, 0].max()):
            padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
            told = [json.loads(part.numpy().tobytes().strip() or b"{}") for part in self._all(padded, len(shares))]
        if errors := [part["error"] for part in told if "error" in part]:
            raise UserError(errors[0])
        places = rows[:, 1:].flatten()
        return places[places >= 0], told

    def _all(self, value: Tensor, processes: int) -> list[Tensor]:
        values = [torch.empty_like(value) for _ in range(processes)]
        torch.distributed.all_gather(values, value, group=self._group)
        return values


@functools.cache
def _on_cpu(world: Any) -> Any:
    """A group that talks without the GPUs: reading an answer from one would wait for all that it has to do."""
    return torch.distributed.new_group(backend="gloo")
