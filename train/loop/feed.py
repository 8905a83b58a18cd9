"""Batches in their order, from any step on; decoded ahead by worker processes if the source decodes.

A source in memory is asked directly. One with a true ``workers`` attribute is asked by worker processes through
torch's DataLoader: its sampler yields whole requests (places, seed), so the order of the data and every cut depend
on the step alone, not on the number or the speed of workers. What workers learn of the files comes home with their
batches and goes out with later requests; pictures are decoded into shared memory, all else is in the message itself.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from toolkit.cv import opencv
from toolkit.errors import UserError, VidonError
from toolkit.progress import quiet
from train.data.batch import Batch, Decoding, Source
from train.loop.buffers import Buffers
from train.loop.schedule import seeded
from train.loop.tidings import Tidings

__all__ = ["Feed", "Order", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """One process's part of a step: places in the source, and its weight in the mean over the whole batch.

    ``shares``: videos in the parts that all processes take at the same time, empty in a single process.
    """

    step: int
    number: int
    places: tuple[int, ...]
    seed: int
    weight: float
    last: bool
    shares: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What each step takes: a new random order every epoch, cut into batches, each into ``processes * accumulate``.

    The number of a part, not the process that takes it, decides its random draws: two processes do exactly what one
    does with ``accumulate = 2``.
    """

    items: int
    batch: int
    epochs: int
    seed: int
    accumulate: int
    processes: int
    rank: int

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return max(1, self.items // self.batch)

    @property
    def largest(self) -> int:
        """Most videos in a part."""
        return -(-min(self.items, self.batch) // (self.accumulate * self.processes))

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.per_epoch * self.epochs

    def parts(self, start: int) -> Iterator[Part]:
        """This process's parts from step ``start`` on."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(start, self.total):
            now, within = divmod(step, self.per_epoch)
            if now != epoch:
                epoch, order = now, torch.randperm(self.items, generator=seeded(self.seed, 1, now)).numpy()
            chosen = np.sort(order[within * self.batch : (within + 1) * self.batch])
            yield from self._split(step, chosen)

    def _split(self, step: int, chosen: np.ndarray[Any, Any]) -> Iterator[Part]:
        count = self.accumulate * self.processes
        if len(chosen) < count:
            raise UserError(
                f"a batch of {len(chosen)} videos cannot be split into {count} parts: raise batch, or lower "
                "run.accumulate or the number of processes"
            )
        pieces = np.array_split(chosen, count)
        cut = int(seeded(self.seed, 4, step).initial_seed())
        for index in range(self.accumulate):
            number = index * self.processes + self.rank
            places = tuple(pieces[number].tolist())
            weight = len(places) * self.processes / len(chosen)
            beside = pieces[index * self.processes : (index + 1) * self.processes]
            shares = tuple(len(piece) for piece in beside) if self.processes > 1 else ()
            yield Part(step, number, places, cut, weight, index == self.accumulate - 1, shares)


#: A part, what is known of its files, and the number of the buffer for its pictures, if there is one.
_Request = tuple[Part, Any, int | None]
#: Batches that each worker has ready or in work.
_AHEAD = 2


class _Requests(Sampler[_Request]):
    def __init__(self, source: Source, order: Order, start: int, buffers: Buffers | None) -> None:
        self._source, self._order, self._start, self._buffers = source, order, start, buffers

    def __iter__(self) -> Iterator[_Request]:
        source = self._source
        for part in self._order.parts(self._start):
            known = source.known(part.places) if isinstance(source, Decoding) else None
            yield part, known, None if self._buffers is None else self._buffers.take(len(part.places))


class _Answers(Dataset[dict[str, Any] | str]):
    """Asks the source in a worker; a user's error travels home as its text."""

    def __init__(self, source: Source, views: int, buffers: Buffers | None) -> None:
        self._source, self._views = source, views
        self._buffers = () if buffers is None else buffers.tensors

    def __getitem__(self, request: _Request) -> dict[str, Any] | str:
        part, known, number = request
        source = self._source
        out = None if number is None else self._buffers[number].numpy()[: len(part.places)]
        try:
            if isinstance(source, Decoding):
                batch = source.draw(part.places, part.seed, self._views, known, out)
            else:
                batch = source.batch(part.places, part.seed, self._views)
        except VidonError as error:
            return str(error)
        answer = _mapped(batch, lambda value: value.numpy())  # a tensor of its own costs a file handle and a socket
        return {**answer, "pictures": batch.pictures if number is None else number}


class Feed:
    """The parts of the run with their batches on the device."""

    def __init__(
        self, source: Source, order: Order, start: int, views: int, workers: int, device: torch.device
    ) -> None:
        self._device, self._pin = device, device.type == "cuda"
        self._lane = _lane(device) if self._pin else None  # copies run beside the step before
        self._parts = order.parts(start)
        self._source, self._views = source, views
        self._first = order.rank == 0
        self._tidings = Tidings() if order.processes > 1 and isinstance(source, Decoding) else None
        self._loader: Iterator[dict[str, Any] | str] | None = None
        self._buffers: Buffers | None = None
        self._ahead: tuple[Part, Batch] | None = None
        if workers > 0 and getattr(source, "workers", False):
            if isinstance(source, Decoding) and not self._pin:  # pinning copies into memory that is used again as well
                # Besides those ahead: the batch of the step before, and the one that is just handed out.
                self._buffers = Buffers(_AHEAD * workers + 2, source.shape(order.largest, views))
            self._loader = _loader(source, order, start, views, workers, self._pin, self._buffers)

    def next(self) -> tuple[Part, Batch]:
        """The next part and its batch."""
        ready, self._ahead = self._ahead, None
        part, batch = ready or self._fetch()
        if self._lane is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._lane)
            for tensor in _tensors(batch):
                tensor.record_stream(stream)  # made on the lane, used here: not to be given away before that
        return part, batch

    def prepare(self) -> None:
        """Fetch one part ahead while a GPU works; on a CPU there would be nothing to gain."""
        if self._pin and self._ahead is None:
            try:
                self._ahead = self._fetch()
            except StopIteration:
                return

    def close(self) -> None:
        """Stop the workers."""
        self._loader = self._buffers = None

    def _fetch(self) -> tuple[Part, Batch]:
        part = next(self._parts)
        batch = self._drawn(part)
        with torch.cuda.stream(self._lane):
            batch = _to(replace(batch, shares=part.shares), self._device, self._pin and self._loader is None)
        return part, batch

    def _drawn(self, part: Part) -> Batch:
        """A part's batch; what it met of broken videos is judged with what the other processes met."""
        source, tidings = self._source, self._tidings
        if not isinstance(source, Decoding):
            return source.batch(part.places, part.seed, self._views) if self._loader is None else self._received()
        try:
            own = self._loader is None
            batch = source.draw(part.places, part.seed, self._views) if own else self._received()
        except UserError as error:
            if tidings is not None:
                tidings.fail(error, part.shares)
            raise
        # A worker has seen its own part only, a process its own too; the first process speaks for all.
        met = batch if tidings is None else tidings.join(batch, part.shares)
        with contextlib.nullcontext() if self._first else quiet():
            source.judge(met)
        return batch

    def _received(self) -> Batch:
        assert self._loader is not None
        try:
            answer = next(self._loader)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise UserError("a decoding worker died (out of memory?): lower run.workers or batch") from error
        if isinstance(answer, str):
            raise UserError(answer)
        if isinstance(answer["pictures"], int):
            assert self._buffers is not None
            answer["pictures"] = self._buffers.lend(answer["pictures"], len(answer["indices"]))
        return Batch(**_mapped(Batch(**answer), torch.from_numpy, np.ndarray))


def _loader(
    source: Source, order: Order, start: int, views: int, workers: int, pin: bool, buffers: Buffers | None
) -> Iterator[dict[str, Any] | str]:
    # Not fork: the parent has threads (progress bar, decoder), whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    loader = DataLoader(
        _Answers(source, views, buffers), batch_size=None, sampler=_Requests(source, order, start, buffers),
        num_workers=workers, collate_fn=_same, pin_memory=pin, prefetch_factor=_AHEAD, multiprocessing_context=context,
        generator=torch.Generator(), worker_init_fn=_begin_work,
    )  # fmt: skip
    return iter(loader)


def _same(value: Any) -> Any:
    return value


def _begin_work(worker: int) -> None:
    """Workers decode side by side, each on one thread, and do not outlive who asks them."""
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """What torch 2.13 watches is the process that made a worker: a fork server, which lives as long as its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _lane(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for item in fields(Batch):
        value = getattr(batch, item.name)
        parts = value.values() if isinstance(value, dict) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))


def _to(batch: Batch, device: torch.device, pin: bool) -> Batch:
    if device.type == "cpu":
        return batch

    return Batch(**_mapped(batch, lambda value: (value.pin_memory() if pin else value).to(device, non_blocking=True)))


def _mapped(batch: Batch, change: Callable[[Any], Any], kind: type = Tensor) -> dict[str, Any]:
    """A batch's fields, each value of a ``kind`` changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(item) for name, item in value.items()}
        return change(value) if isinstance(value, kind) else value

    return {field.name: changed(getattr(batch, field.name)) for field in fields(Batch)}
