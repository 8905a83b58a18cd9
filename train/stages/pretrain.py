"""Self-supervised pretraining of the teacher's encoder."""

from pathlib import Path

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.recipe import Recipe
from train.data.batch import Batch
from train.loop import Plan, fit
from train.models.pretrained import start_from
from train.models.store import Model, build
from train.models.vit import TubeletViT
from train.objectives.masked import MaskedAutoencoder, tube_mask
from train.stages.common import Data, card_of, run_stage

__all__ = ["pretrain"]


def pretrain(recipe: Recipe, out: Path) -> Path:
    """Masked video modelling of the teacher's encoder on the training clips; labels are not used."""

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.pretrain.seed)
        teacher = build(card_of(recipe, "teacher", data.index.labels))
        if not isinstance(teacher, TubeletViT):
            raise UserError(f"masked pretraining needs a ViT: teacher.encoder is {recipe.teacher.encoder!r}")
        start_from(teacher, recipe.teacher.pretrained)
        model = MaskedAutoencoder(teacher, recipe.pretrain.decoder_dim, recipe.pretrain.decoder_depth)

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            clips, _ = data.augment(batch.first, batch.labels, generator)
            mask = tube_mask(len(clips), teacher.grid, recipe.pretrain.mask_ratio, generator)
            value: Tensor = model(clips.transpose(1, 2), mask)
            return value

        fit(Plan("pretrain (masked)", model, loss, recipe.pretrain, run=recipe.run), data.train, out)
        return teacher

    return run_stage("pretrain", recipe, ("teacher", "pretrain"), {}, out, "teacher", work)
