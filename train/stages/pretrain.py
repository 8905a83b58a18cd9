"""Self-supervised pretraining of the teacher's encoder: one objective or several, labels are not used."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.recipe import Recipe
from train.data.batch import Batch
from train.data.clips import Augment
from train.loop import Fit, Plan, fit
from train.models.pretrained import start_from
from train.models.registry import module_of
from train.models.store import Model, build
from train.objectives import Mixture, resolve
from train.objectives.features import Encoder
from train.stages.common import Data, card_of, parents_of, run_stage

__all__ = ["pretrain", "view_clips"]


def pretrain(recipe: Recipe, out: Path) -> Path:
    """Train the teacher's encoder on the training clips with the recipe's objectives.

    Raises:
        UserError: an unknown objective or setting, or one that does not apply to this encoder.
    """
    module_of(recipe.teacher.encoder)  # a misspelt name is told before anything is decoded
    configs = resolve(recipe.pretrain.objectives, recipe.pretrain.settings)
    settings = {name: config.model_dump(mode="json") for name, config in configs.items()}
    recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"settings": settings})})
    ended: list[Fit] = []

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.pretrain.seed)
        teacher = build(card_of(recipe, "teacher", data.index.labels))
        assert isinstance(teacher, Encoder)
        start_from(teacher, recipe.teacher.pretrained)
        clip = (3, recipe.data.frames, *recipe.preprocess.size)
        model = Mixture(teacher, recipe.pretrain.objectives, configs, clip)

        def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            parts: dict[str, Tensor] = model(view_clips(batch, data.augment, generator), generator, batch)
            return parts

        label = f"pretrain ({', '.join(recipe.pretrain.objectives)})"
        plan = Plan(label, model, loss, recipe.pretrain, views=model.views, run=recipe.run, after_step=model.after_step)
        ended.append(fit(plan, data.train, out))
        return teacher

    def report(_model: Model, _data: Data) -> dict[str, Any]:
        """Labels are not used, so there is nothing to be right about: the loss is all that can be said."""
        return {"metric": "training loss", "loss": ended[0].losses[-1]}

    parents = parents_of(init=recipe.teacher.pretrained)
    return run_stage("pretrain", recipe, ("teacher", "pretrain"), parents, out, "teacher", work, report)


def view_clips(batch: Batch, augment: Augment, generator: torch.Generator) -> Tensor:
    """All views of a batch as clips (B, V, C, T, H, W); the views of one video share one mild augmentation.

    They are augmented as one long clip: a mirror image of one view but not of the other would say that left is right.
    """
    videos, views = batch.pictures.shape[:2]
    clips, _ = augment(batch.pictures.flatten(1, 2), batch.labels, generator)
    return clips.reshape(videos, views, -1, *clips.shape[2:]).transpose(2, 3)
