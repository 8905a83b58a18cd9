"""Supervised training of the teacher on the labels."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.recipe import Recipe
from train.data.batch import Batch
from train.loop import Plan, fit
from train.models.store import Loaded, Model, build, load_model
from train.stages.common import Data, card_of, parents_of, run_stage, validator
from train.stages.detect import detect_encoder

__all__ = ["finetune"]


def finetune(recipe: Recipe, out: Path, init: Path | None = None) -> Path:
    """Supervised training of the teacher, from ``init`` (a pretrained encoder) or from scratch.

    With ``task = "detection"`` the head of boxes on the encoder instead.
    """
    if recipe.task == "detection":
        return detect_encoder(recipe, out, init)
    start = load_model(init) if init is not None else None

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.finetune.seed)
        teacher = build(card_of(recipe, "teacher", data.index.labels))
        if start is not None:
            _copy_encoder(start, teacher)
        teacher.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            clips, labels = data.augment(batch.first, batch.labels, generator)
            smoothing = recipe.finetune.label_smoothing
            return functional.cross_entropy(teacher(clips.transpose(1, 2)), labels, label_smoothing=smoothing)

        plan = Plan(
            "fine-tune teacher", teacher, loss, recipe.finetune, validator(teacher, data, recipe), _layer_rates(recipe)
        )
        fit(plan, data.train, out)
        return teacher

    return run_stage("finetune", recipe, ("teacher", "finetune"), parents_of(init=init), out, "teacher", work)


def _copy_encoder(start: Loaded, teacher: Model) -> None:
    state = {name: tensor for name, tensor in start.model.state_dict().items() if not name.startswith("head.")}
    try:
        teacher.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(
            "the pretrained encoder has another shape than the recipe's teacher: use the same [teacher]"
        ) from error


def _layer_rates(recipe: Recipe) -> Callable[[str], float]:
    """Layer-wise learning-rate decay, and zero for frozen layers (embedding and the first ``freeze`` blocks)."""
    depth, decay, freeze = recipe.teacher.depth, recipe.finetune.layer_decay, recipe.finetune.freeze

    def rate(name: str) -> float:
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name.startswith("embed") else depth + 1
        frozen = freeze > 0 and layer <= freeze
        return 0.0 if frozen else float(decay ** (depth + 1 - layer))

    return rate
