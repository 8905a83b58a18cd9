"""Supervised training of the teacher on the labels: all of it, its last blocks, or its head alone.

Weights are chosen on validation. The test split, if there is one, is answered once, when the stage has ended, and
decides nothing. Layer-wise learning-rate decay: Clark et al. 2020, arXiv:2003.10555; Bao et al. 2021,
arXiv:2106.08254.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.progress import note
from toolkit.recipe import FinetuneConfig, Recipe
from train.data.augment import ClipAugment
from train.data.batch import Batch
from train.data.sources import open_source
from train.detect.clip import ClipDetector
from train.evaluate import judge_split
from train.loop import BatchLoss, Plan, fit
from train.models.pretrained import copy_encoder, start_from
from train.models.registry import module_of
from train.models.store import ClipModel, Loaded, Model, build, load_model
from train.models.student import StreamStudent
from train.stages.common import Data, card_of, frozen_norms, parents_of, run_stage, validator
from train.stages.detect import detect_encoder
from train.stages.retrieve import fit_head, judge, seeker
from train.tasks.classification import Classification
from train.tasks.retrieval import Retrieval

__all__ = ["finetune", "frozen_norms", "layer_rates"]


def finetune(recipe: Recipe, out: Path, init: Path | None = None) -> Path:
    """Supervised training of the teacher, from ``init`` (a pretrained encoder) or from scratch.

    With ``task = "detection"`` the head of boxes on the encoder instead. With ``finetune.task = "retrieval"`` the
    embedding is trained, and the head follows from it at the end.
    """
    if recipe.task == "detection":
        return detect_encoder(recipe, out, init)
    module_of(recipe.teacher.encoder)  # a misspelt name is told before anything is decoded
    start = load_model(init) if init is not None else None
    if start is not None and recipe.teacher.pretrained is not None:
        note(f"teacher.pretrained = {recipe.teacher.pretrained!r} is not used: --init {init} comes first")

    def work(data: Data) -> Model:
        return _train(recipe, data, _teacher(recipe, data.index.labels, start, str(init)), out)

    def report(model: Model, data: Data) -> dict[str, Any]:
        return _figures(model, data, recipe, out)

    parents = parents_of(init=init or recipe.teacher.pretrained)
    return run_stage("finetune", recipe, ("teacher", "finetune"), parents, out, "teacher", work, report)


def _train(recipe: Recipe, data: Data, teacher: ClipModel, out: Path) -> Model:
    """Fit the whole teacher, or what of it is not frozen; of a retrieval task also the head that follows from it."""
    config, pre, labels = recipe.finetune, recipe.preprocess, data.index.labels
    rates = layer_rates(teacher.layers(), config)
    task: Retrieval | Classification = Retrieval(labels)
    if config.task == "classification":
        task = Classification(labels, data.index.multi_label, config.label_smoothing)
    validate = seeker(teacher, data.val, pre, task) if isinstance(task, Retrieval) else validator(teacher, data, recipe)
    loss = _loss(teacher, task, data, recipe, frozen_norms(teacher, rates))
    fit(Plan("fine-tune teacher", teacher, loss, config, validate, rates, run=recipe.run), data.train, out)
    if isinstance(task, Retrieval):
        fit_head(teacher, data.train, pre, task)
    return teacher


def _teacher(recipe: Recipe, labels: tuple[str, ...], start: Loaded | None, source: str) -> ClipModel:
    """With the weights it starts from: another run's, published ones, or none."""
    torch.manual_seed(recipe.finetune.seed)
    teacher = build(card_of(recipe, "teacher", labels))
    assert not isinstance(teacher, StreamStudent | ClipDetector)
    if start is not None:
        copy_encoder(teacher, start.model, source)
    else:
        start_from(teacher, recipe.teacher.pretrained)
    teacher.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return teacher


def _loss(
    teacher: ClipModel, task: Retrieval | Classification, data: Data, recipe: Recipe, frozen: list[nn.Module]
) -> BatchLoss:
    """Of augmented clips: on the embedding for retrieval, else on the logits."""
    turning = recipe.data.mirror and not recipe.data.flips
    augment = ClipAugment(data.augment, recipe.finetune, len(data.index.labels), turning)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        for norm in frozen:
            norm.eval()  # the loop has put the whole model into training mode
        clips, labels = augment(batch.first, batch.labels, generator)
        clips = clips.transpose(1, 2)
        answers = teacher.embed(clips) if isinstance(task, Retrieval) else teacher(clips)
        return task.loss(replace(batch, labels=labels), answers)

    return loss


def _figures(model: Model, data: Data, recipe: Recipe, out: Path) -> dict[str, Any]:
    """What is reported once, at the end: the ranking of validation clips, and the test split if there is one."""
    found: dict[str, Any] = {}
    if recipe.finetune.task == "retrieval" and data.val is not None:
        figures = judge(model, data.val, recipe.preprocess, Retrieval(data.index.labels))
        found = {"validation": figures["map"], "metric": "retrieval mAP", "retrieval": figures}
    if any(clip.split == "test" for clip in data.index.clips):
        views = recipe.finetune.views
        found["test"] = judge_split(model, data.index, "test", recipe.preprocess, views, out / "figures")
        if recipe.finetune.task == "retrieval":
            clips = open_source(recipe.data, data.index, "test", recipe.preprocess, random=False)
            found["test"]["retrieval"] = judge(model, clips, recipe.preprocess, Retrieval(data.index.labels))
    return found


def layer_rates(layers: list[str], config: FinetuneConfig) -> Callable[[str], float]:
    """Factor of the learning rate by parameter name; 0 for frozen layers (the embedding and ``freeze`` blocks).

    A norm between the last block and the head is at the head's rate, as in BEiT and the masked autoencoders.

    Raises:
        UserError: more blocks are frozen than there are.
    """
    head = layers[-1]
    order = [name for name in layers[:-1] if not _is_last_norm(name, layers)]
    if config.freeze >= len(order):
        raise UserError(
            f"finetune.freeze = {config.freeze}, but the encoder has {len(order) - 1} blocks: "
            "freeze fewer, or train the head alone with finetune.linear_probe = true"
        )

    def rate(parameter: str) -> float:
        if _belongs(parameter, head):
            return 1.0
        if config.linear_probe:
            return 0.0
        layer = next((index for index, name in enumerate(order) if _belongs(parameter, name)), len(order))
        frozen = config.freeze > 0 and layer <= config.freeze
        return 0.0 if frozen else float(config.layer_decay ** (len(order) - layer))

    return rate


def _belongs(parameter: str, layer: str) -> bool:
    return parameter == layer or parameter.startswith(f"{layer}.")


def _is_last_norm(name: str, layers: list[str]) -> bool:
    return "norm" in name and name == layers[-2]
