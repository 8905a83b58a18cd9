"""From teacher to student: distillation, and pruning with recovery."""

from pathlib import Path

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.recipe import DistillConfig, PruneConfig, Recipe
from train.compress.distill import distillation_loss
from train.compress.prune import prune_student
from train.data.batch import Batch
from train.data.clips import normalise
from train.data.index import index_data
from train.loop import Plan, fit
from train.models.store import Model, build, load_model, same_labels
from train.models.student import StreamStudent
from train.stages.common import Data, card_of, guide_of, own_weights, parents_of, run_stage, start_from, validator
from train.stages.detect import detect_student, prune_detector

__all__ = ["distill", "prune", "spread"]

_JUDGES = 32  # clips over which Taylor importance takes its gradient


def distill(recipe: Recipe, out: Path, teacher: Path | None = None) -> Path:
    """Train the streaming student on labels and, if there is one, on the teacher's soft answers.

    With ``task = "detection"`` the student learns boxes, and its teacher is ``detection.teacher``.
    """
    if recipe.task == "detection":
        if teacher is not None:
            raise UserError("a detector's teacher is a file named in the recipe (detection.teacher), not --teacher")
        return detect_student(recipe, out)
    guide = guide_of(teacher, recipe)

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.distill.seed)
        student = build(card_of(recipe, "student", data.index.labels))
        assert isinstance(student, StreamStudent)
        start_from(student, recipe)
        _train_student(student, guide, data, recipe, recipe.distill, "distil student", out)
        return student

    parents = parents_of(teacher=teacher, start=own_weights(recipe.student))
    return run_stage("distill", recipe, ("student", "distill"), parents, out, "student", work)


def prune(recipe: Recipe, out: Path, student: Path, teacher: Path | None = None) -> Path:
    """Remove channels from a trained student and recover by distillation."""
    if recipe.task == "detection":
        return prune_detector(recipe, out, student)
    loaded = load_model(student)
    guide = guide_of(teacher, recipe)
    if not isinstance(loaded.model, StreamStudent):
        raise UserError(f"model {student} is a clip model: only streaming students are pruned")
    same_labels(student, loaded.card, index_data(recipe.data).labels)

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.prune.seed)
        pruned = loaded.model
        assert isinstance(pruned, StreamStudent)

        def loss() -> Tensor:
            batch = data.train.batch(spread(len(data.train), _JUDGES), 0)
            clips, labels = normalise(batch.first, recipe.preprocess), batch.labels
            return distillation_loss(pruned(clips), labels, None, 0.0, 1.0, warmup=pruned.contract().warmup)

        prune_student(pruned, recipe.prune, loss)
        _train_student(pruned, guide, data, recipe, recipe.prune, "recover pruned student", out)
        return pruned

    return run_stage(
        "prune", recipe, ("prune", "distill"), parents_of(student=student, teacher=teacher), out, "student", work
    )


def spread(total: int, most: int) -> list[int]:
    """At most so many places of a source, from all over it: clips of one class stand together.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    count = min(total, most)
    return [index * total // count for index in range(count)]


def _train_student(
    student: StreamStudent, guide: Model | None, data: Data, recipe: Recipe, optim: DistillConfig | PruneConfig,
    label: str, out: Path,
) -> None:  # fmt: skip
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config, warmup = recipe.distill, student.contract().warmup

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        clips, labels = data.augment(batch.first, batch.labels, generator)
        soft = None
        if guide is not None:
            with torch.no_grad():
                soft = guide(clips.transpose(1, 2))
        logits = student(clips)
        return distillation_loss(logits, labels, soft, config.alpha, config.temperature, config.label_smoothing, warmup)

    beside = () if guide is None else (guide,)
    plan = Plan(label, student, loss, optim, validator(student, data, recipe), run=recipe.run, beside=beside)
    fit(plan, data.train, out)
