"""The loop itself: one step after another, with an end to each epoch and a checkpoint now and then."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import writable_dir
from toolkit.progress import Bar, bar, note
from train.data.batch import Source
from train.loop import checkpoint
from train.loop.curves import draw_curves
from train.loop.feed import Feed, Order, Part
from train.loop.meters import Metrics, Spent, write_facts, write_summary
from train.loop.plan import Fit, Plan
from train.loop.schedule import Average, make_optimizer, put, rate, seeded, snapshot
from train.loop.world import World

__all__ = ["fit"]

_PENDING_ON_GPU = 10  # steps whose losses are read together: reading one waits for the GPU
_SHARE_SAVING = 0.1  # of the time, at the end of short epochs


def fit(plan: Plan, data: Source, out: Path) -> Fit:
    """Train ``plan.model`` in place, going on from ``out/checkpoint.safetensors`` if there is one.

    ``out`` also gets metrics.jsonl, run.json, summary.json and curves.png. Afterwards the model is on the CPU.

    Raises:
        UserError: the loss or its gradient is not finite, or the checkpoint belongs to another run.
    """
    return _Run(plan, data, writable_dir(out)).go()


class _Run:
    """The state of one fit: optimiser, step, history, best weights."""

    def __init__(self, plan: Plan, data: Source, out: Path) -> None:
        self.plan, self.data, self.out = plan, data, out
        self.file = out / "checkpoint.safetensors"
        self.world = World(plan.run, plan.model, plan.beside)
        optim = plan.optim
        self.order = Order(
            len(data), optim.batch, optim.epochs, optim.seed, plan.run.accumulate, self.world.processes, self.world.rank
        )
        self.step, self.running, self.length = 0, 0.0, 0
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.pending: list[dict[str, Any]] = []
        self.loss = math.nan
        self._start()
        self.spent = Spent(self.step)

    def _start(self) -> None:
        """Optimiser and wrapped model; everything from the checkpoint if there is one."""
        plan, world = self.plan, self.world
        found = checkpoint.read(self.file, self.order.total) if self.file.is_file() else None
        try:
            if found is not None:
                plan.model.load_state_dict(found.part("model"))
            self.optimizer = make_optimizer(plan.model, plan.optim, plan.lr_scale)
            world.wrap(self.optimizer)
            self.average = Average(plan.model, plan.optim.ema) if plan.optim.ema > 0 else None
            if found is not None:
                self._restore(found)
        except (RuntimeError, KeyError, ValueError) as error:
            if found is None:
                raise
            raise checkpoint.foreign(self.file, error) from error

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        history, like = found.history, self.plan.model.state_dict()
        checkpoint.load_optimizer(self.optimizer, self.plan.model, found.part("optim"))
        if self.average is not None:
            average = found.part("average")
            self.average.state = {name: checkpoint.placed(average[name], tensor) for name, tensor in like.items()}
        self.best = {name: checkpoint.placed(tensor, like[name]) for name, tensor in found.part("best").items()}
        self.step, self.running, self.length = history["step"], history["running"], history["metrics"]
        self.losses, self.validation = list(history["losses"]), list(history["validation"])

    def go(self) -> Fit:
        """Run to the end."""
        plan, world = self.plan, self.world
        if self.step:
            note(f"  {plan.label}: going on at step {self.step} of {self.order.total}")
        self.metrics = Metrics(self.out, self.length, self.step, plan.run.tracker, world.main)
        self.feed = Feed(self.data, self.order, self.step, plan.views, plan.run.workers, world.device)
        if world.main:
            write_facts(self.out, self._facts())
        try:
            with bar(plan.label, self.order.total) as progress:
                progress.advance(self.step)
                self._steps(progress)
        finally:
            self.feed.close()
            self.metrics.close()
        if self.best:
            put(plan.model, self.best)
        elif self.average is not None:
            put(plan.model, self.average.state)
        world.close()
        fit = Fit(tuple(self.losses), tuple(self.validation), max(self.validation, default=None))
        if world.main:
            speed = self.spent.clips_per_s(self.order.total, self.order.batch)
            write_summary(self.out, self.order.total, fit, speed)
            draw_curves(self.out)
        return fit

    def _steps(self, progress: Bar) -> None:
        wanted_s = self.plan.run.save_every_s if self.plan.every_s is None else self.plan.every_s
        saved_s, took_s = time.monotonic(), 0.0
        while self.step < self.order.total:
            self._train_step()
            ended = self.step % self.order.per_epoch == 0
            if ended:
                self._end_epoch()
            since_s = time.monotonic() - saved_s
            over = self.step == self.order.total
            if over or since_s > wanted_s or (ended and since_s * _SHARE_SAVING > took_s):
                started_s = time.monotonic()
                self._save()
                saved_s = time.monotonic()
                took_s = saved_s - started_s
            progress.advance(1, self._news())

    def _train_step(self) -> None:
        optim, world = self.plan.optim, self.world
        self.plan.model.train()
        lr = rate(self.step, self.order.total, optim.warmup) * optim.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        values: dict[str, Tensor] = {}
        last = False
        while not last:
            self.spent.lap("other")
            part, batch = self.feed.next()
            self.spent.lap("data")
            last = part.last
            with world.part(last):
                answer = world.call(self.plan.loss, batch, self._draw(part))
                self.spent.lap("forward")
                named = answer if isinstance(answer, dict) else {"loss": answer}
                world.accelerator.backward(named["loss"] * part.weight)
            for name, value in named.items():
                scaled = value.detach() * part.weight
                values[name] = values[name] + scaled if name in values else scaled
            self.spent.lap("backward")
        norm = world.clip(optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.plan.after_step is not None:
            self.plan.after_step(self.step)
        self.spent.lap("optimizer")
        self.feed.prepare()
        self.spent.lap("data")
        self._note_step(lr, values, norm)

    def _draw(self, part: Part) -> torch.Generator:
        """Seed dropout, and give the loss's generator; both belong to this part of this step."""
        tail = (part.number,) if part.number else ()
        torch.manual_seed(int(seeded(self.plan.optim.seed, 2, part.step, *tail).initial_seed()))
        return seeded(self.plan.optim.seed, 3, part.step, *tail)

    def _note_step(self, lr: float, values: dict[str, Tensor], norm: Tensor) -> None:
        self.pending.append({"lr": lr, "norm": norm, "values": values, "step": self.step})
        if self.world.device.type == "cpu" or len(self.pending) >= _PENDING_ON_GPU:
            self._flush()

    def _flush(self) -> None:
        """Read the pending losses, refuse those that are not finite, write their lines."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        names = list(pending[0]["values"])
        table = torch.stack([torch.stack([p["values"][n].float() for n in names]) for p in pending])
        norms = torch.stack([p["norm"].float() for p in pending]).tolist()
        for record, row, norm in zip(pending, self.world.mean(table).tolist(), norms, strict=True):
            named = dict(zip(names, row, strict=True))
            self.loss = named.pop("loss")
            step, epoch = record["step"], (record["step"] - 1) // self.order.per_epoch + 1
            # A gradient that is not finite spoils the weights, even where the loss still looks well.
            for what, value in (("loss", self.loss), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise UserError(
                        f"{self.plan.label}: the {what} is {value} at step {step - 1}: lower the learning rate (lr)"
                    )
            self.running += self.loss
            self.metrics.write(
                {"step": step, "epoch": epoch, "loss": self.loss, "lr": record["lr"], "grad_norm": norm, **named}
            )

    def _end_epoch(self) -> None:
        self._flush()
        self.losses.append(self.running / self.order.per_epoch)
        self.running = 0.0
        record: dict[str, Any] = {"epoch": len(self.losses), "step": self.step, "loss": self.losses[-1]}
        if self.plan.validate is not None:
            record["validation"] = self._validate()
        self.metrics.write({**record, **self.spent.epoch(self.step, self.order.batch)})

    def _validate(self) -> float:
        """Accuracy of the averaged weights if there are any, else of the weights; the best are kept."""
        model, world = self.plan.model, self.world
        assert self.plan.validate is not None
        kept = snapshot(model) if self.average is not None else None
        if self.average is not None:
            put(model, self.average.state)
        model.eval()
        world.reshard()
        with torch.no_grad():
            answer = torch.tensor(world.call(self.plan.validate), dtype=torch.float64, device=world.device)
            accuracy = float(world.mean(answer))
        if not self.validation or accuracy >= max(self.validation):
            self.best = snapshot(model)
        if kept is not None:
            put(model, kept)
        world.reshard()
        self.validation.append(accuracy)
        return accuracy

    def _save(self) -> None:
        self._flush()
        history = {"step": self.step, "running": self.running, "losses": self.losses, "validation": self.validation,
                   "total": self.order.total, "metrics": self.metrics.settle()}  # fmt: skip
        self.world.reshard()
        model = self.plan.model
        parts = {"model": model.state_dict(), "average": self.average.state if self.average else {}, "best": self.best,
                 "optim": checkpoint.optimizer_tensors(self.optimizer, model)}  # fmt: skip
        checkpoint.write(self.file, parts, history, self.world.main)

    def _news(self) -> str:
        speed = f"  {self.spent.clips_per_s(self.step, self.order.batch):.1f} clips/s"
        validation = f"  val {self.validation[-1]:.3f}" if self.validation else ""
        return f"loss {self.loss:.3f}{validation}{speed}"

    def _facts(self) -> dict[str, Any]:
        return {
            "label": self.plan.label, "seed": self.plan.optim.seed, "run": self.plan.run.model_dump(mode="json"),
            "steps": self.order.total, "clips": len(self.data), "device": str(self.world.device),
            "processes": self.world.processes, "parameters": sum(p.numel() for p in self.plan.model.parameters()),
        }  # fmt: skip
