"""The one training loop: AdamW, warm-up then cosine, exact resume.

Every random draw is a function of (seed, epoch, step) alone, and a checkpoint holds weights, optimiser state
and step in one safetensors file that is replaced atomically. So a run killed at any moment continues bit for
bit as if nothing had happened (on one machine's CPU).
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.files import writable_dir, write_bytes
from toolkit.progress import bar, note
from train.data.batch import Batch, Source

__all__ = ["BatchLoss", "Fit", "Plan", "fit", "seeded"]

#: Maps a batch to a scalar, or to named scalars: "loss" is minimised, the others are only logged.
BatchLoss = Callable[[Batch, torch.Generator], Tensor | dict[str, Tensor]]


class Optim(Protocol):
    """The optimiser settings of a recipe section."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One training stage. ``loss`` maps a batch to a scalar; ``validate`` gives an accuracy, best weights win.

    ``lr_scale`` maps a parameter's name to a factor of the learning rate (0 freezes it); ``views`` is how many
    clips of each video a batch holds.
    """

    label: str
    model: nn.Module
    loss: BatchLoss
    optim: Optim
    validate: Callable[[], float] | None = None
    lr_scale: Callable[[str], float] = field(default=lambda name: 1.0)
    every_s: float = 20.0
    views: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """losses: mean loss of each epoch; best: best validation accuracy, if validated."""

    losses: tuple[float, ...]
    validation: tuple[float, ...]
    best: float | None


def seeded(*parts: int) -> torch.Generator:
    """A generator that depends on the given numbers only."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


def fit(plan: Plan, data: Source, out: Path) -> Fit:
    """Train ``plan.model`` in place, going on from ``out/checkpoint.safetensors`` if there is one.

    Raises:
        UserError: the loss is not finite, or the checkpoint belongs to another run.
    """
    return _Run(plan, data, writable_dir(out)).go()


class _Run:
    """The state of one fit: optimiser, step, history, best weights."""

    def __init__(self, plan: Plan, data: Source, out: Path) -> None:
        self.plan, self.data, self.out = plan, data, out
        scaled = [(p, plan.lr_scale(name)) for name, p in plan.model.named_parameters()]
        for parameter, scale in scaled:
            parameter.requires_grad_(scale > 0)
        decay = plan.optim.weight_decay
        groups = [{"params": [p], "scale": s, "weight_decay": decay if p.ndim > 1 else 0.0} for p, s in scaled if s > 0]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.optim.lr)
        self.per_epoch = max(1, len(data) // plan.optim.batch)
        self.total = self.per_epoch * plan.optim.epochs
        self.step = 0
        self.running = 0.0
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.file = out / "checkpoint.safetensors"

    def go(self) -> Fit:
        if self.file.is_file():
            self._restore()
            note(f"  {self.plan.label}: going on at step {self.step} of {self.total}")
        saved_s = time.monotonic()
        with bar(self.plan.label, self.total) as progress:
            progress.advance(self.step)
            while self.step < self.total:
                loss = self._train_step()
                done = self.step % self.per_epoch == 0
                if done:
                    self._end_epoch()
                if done or time.monotonic() - saved_s > self.plan.every_s:
                    self._save()
                    saved_s = time.monotonic()
                progress.advance(1, self._news(loss))
        if self.best:
            self.plan.model.load_state_dict(self.best, strict=False)
        return Fit(tuple(self.losses), tuple(self.validation), max(self.validation, default=None))

    def _news(self, loss: float) -> str:
        validation = f"  val {self.validation[-1]:.3f}" if self.validation else ""
        return f"loss {loss:.3f}{validation}"

    def _train_step(self) -> float:
        optim, epoch, within = self.plan.optim, *divmod(self.step, self.per_epoch)
        order = torch.randperm(len(self.data), generator=seeded(optim.seed, 1, epoch)).numpy()
        chosen = np.sort(order[within * optim.batch : (within + 1) * optim.batch])
        torch.manual_seed(int(seeded(optim.seed, 2, self.step).initial_seed()))  # dropout
        self.plan.model.train()
        rate = _rate(self.step, self.total, optim.warmup) * optim.lr
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        batch = self.data.batch(chosen.tolist(), int(seeded(optim.seed, 4, self.step).initial_seed()), self.plan.views)
        answer = self.plan.loss(batch, seeded(optim.seed, 3, self.step))
        loss = answer["loss"] if isinstance(answer, dict) else answer
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"{self.plan.label}: the loss is {value} at step {self.step}: lower the learning rate (lr)")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.plan.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.running += value
        return value

    def _end_epoch(self) -> None:
        self.losses.append(self.running / self.per_epoch)
        self.running = 0.0
        record = {"epoch": len(self.losses), "step": self.step, "loss": self.losses[-1]}
        if self.plan.validate is not None:
            self.plan.model.eval()
            accuracy = self.plan.validate()
            if not self.validation or accuracy >= max(self.validation):
                self.best = {name: tensor.clone() for name, tensor in self.plan.model.state_dict().items()}
            self.validation.append(accuracy)
            record["validation"] = accuracy
        lines = [
            json.dumps(
                {"epoch": index + 1, "loss": loss, "validation": self.validation[index] if self.validation else None}
            )
            for index, loss in enumerate(self.losses)
        ]
        write_bytes(self.out / "metrics.jsonl", ("\n".join(lines) + "\n").encode())

    def _save(self) -> None:
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in self.plan.model.state_dict().items()}
        tensors |= {f"best.{name}": t.contiguous() for name, t in self.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optim.{index}.{name}": t.contiguous() for name, t in values.items()}
        history = {"step": self.step, "running": self.running, "losses": self.losses, "validation": self.validation,
                   "total": self.total}  # fmt: skip
        write_bytes(self.file, save(tensors, metadata={"history": json.dumps(history)}))

    def _restore(self) -> None:
        try:
            with safe_open(self.file, framework="pt") as file:
                history = json.loads(file.metadata()["history"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
            self.plan.model.load_state_dict(model)
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optim."):
                    _, index, key = name.split(".", 2)
                    state.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {self.file} does not belong to this run ({reason}): remove it or change --out"
            ) from error
        if history["total"] != self.total:
            raise UserError(
                f"checkpoint {self.file} is of a run of {history['total']} steps, this one has {self.total}: "
                "remove it or change --out"
            )
        self.best = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
        self.step, self.running = history["step"], history["running"]
        self.losses, self.validation = list(history["losses"]), list(history["validation"])


def _rate(step: int, total: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
