"""Small training runs as processes of their own: ``python -m tests.train.runner OUT kinds=a,b key=value ...``."""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.recipe import FinetuneConfig, RunConfig, TeacherConfig
from train.data.batch import Batch
from train.loop import Plan, fit, is_main
from train.models.vit import TubeletViT
from train.objectives import Mixture, resolve
from train.objectives.masked import MaskedAutoencoder, tube_mask
from train.tasks.retrieval import Retrieval

ITEMS, FRAMES, SIDE = 24, 4, 16
COMPARING = ("contrastive", "queue", "retrieval")
# Seven clips do not fall into two equal parts.
DESCENT = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0, "clip": 0.0, "batch": 7, "ema": 0.0}


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Cuts each clip from its video by (seed, place) alone; ``workers`` asks for worker processes."""

    workers: bool = True
    pause_s: float = 0.0

    def __len__(self) -> int:
        return ITEMS

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        time.sleep(self.pause_s)
        clips = [self._cut(index, seed, view) for index in indices for view in range(views)]
        pictures = torch.from_numpy(np.stack(clips)).reshape(len(indices), views, FRAMES, SIDE, SIDE, 3)
        places = torch.tensor(list(indices))
        return Batch(pictures, places % 2, places, {"scene": places % 3})

    def _cut(self, index: int, seed: int, view: int) -> np.ndarray[Any, Any]:
        video = np.random.default_rng(index).integers(0, 256, (FRAMES * 2, SIDE, SIDE, 3), dtype=np.uint8)
        start = int(np.random.default_rng([seed, index, view]).integers(0, FRAMES))
        return video[start : start + FRAMES]


def teacher() -> TubeletViT:
    """Two blocks, the same weights every time."""
    torch.manual_seed(0)
    return TubeletViT(TeacherConfig(dim=16, depth=2, heads=2, tubelet=(2, 8, 8)), 2, (3, SIDE, SIDE), FRAMES)


def plan_of(kind: str, optim: FinetuneConfig, run: RunConfig, every_s: float | None = None) -> Plan:
    """``labels``: nothing random in the loss; ``masked``: a random mask; ``sharded``: labels under FSDP2.

    The other kinds compare clips with each other: ``contrastive``, ``queue``, ``retrieval``, and under FSDP2
    ``queue-sharded``. Nothing in them is random, and plain gradient descent shows the gradients themselves.
    """
    run = run.model_copy(update={"strategy": "fsdp2"}) if kind.endswith("sharded") else run
    if kind.split("-")[0] in COMPARING:
        return _comparing(kind.split("-")[0], optim.model_copy(update=DESCENT), run, every_s)
    vit = teacher()
    model: nn.Module = MaskedAutoencoder(vit, 16, 1) if kind == "masked" else vit

    def loss(batch: Batch, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        clips = (batch.first.float() / 255).permute(0, 4, 1, 2, 3)
        if kind == "masked":
            value: Tensor = model(clips, tube_mask(len(clips), vit.grid, 0.75, generator))
            return {"loss": value, "twice": 2 * value}
        return nn.functional.cross_entropy(vit(clips), batch.labels)

    return Plan(kind, model, loss, optim, validate=lambda: 0.5, run=run, every_s=every_s)


def _comparing(kind: str, optim: FinetuneConfig, run: RunConfig, every_s: float | None) -> Plan:
    vit = teacher()
    if kind == "retrieval":
        task = Retrieval(("even", "odd"))

        def alike(batch: Batch, generator: torch.Generator) -> Tensor:
            return task.loss(batch, vit.embed((batch.first.float() / 255).permute(0, 4, 1, 2, 3)))

        return Plan(kind, vit, alike, optim, run=run, every_s=every_s)
    settings: dict[str, Any] = {"temperature": 0.2, "augment": {"area": 1, "colour": 0, "grey": 0, "blur": 0}}
    if kind == "queue":
        settings |= {"momentum": 0.5, "queue": 20}
    weights = {"contrastive": 1.0}
    model = Mixture(vit, weights, resolve(weights, {"contrastive": settings}), (3, FRAMES, SIDE, SIDE))

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = model((batch.pictures.float() / 255).permute(0, 1, 5, 2, 3, 4), generator, batch)
        return parts

    return Plan(kind, model, loss, optim, run=run, every_s=every_s, views=2, after_step=model.after_step)


def main() -> None:
    """Each kind is one run in OUT/<kind>; the other options are keys of [finetune] and [run]."""
    torch.set_num_threads(1)
    out, *pairs = sys.argv[1:]
    options = dict(pair.split("=") for pair in pairs)
    kinds, pause_s = options.pop("kinds").split(","), float(options.pop("pause_s", "0"))
    fields = {key: options.pop(key) for key in list(options) if key in FinetuneConfig.model_fields}
    optim = FinetuneConfig.model_validate({"epochs": 1, "batch": 8, "lr": 0.01, **fields})
    run = RunConfig.model_validate({"device": "cpu", "workers": 0, **options})
    print("ready", flush=True)
    for kind in kinds:
        plan = plan_of(kind, optim, run, run.save_every_s)
        fit(plan, Decoding(pause_s=pause_s), Path(out) / kind)
        state = {name: tensor.contiguous() for name, tensor in plan.model.state_dict().items()}
        rank = os.environ.get("RANK", "0")
        save_file(state, Path(out) / kind / ("final.safetensors" if is_main() else f"final-{rank}.safetensors"))


if __name__ == "__main__":
    main()
