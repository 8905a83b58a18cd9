"""The training stages of the road: pretrain, fine-tune, distil, prune.

Each takes a recipe and an output folder and leaves there the model, the resolved recipe, the metrics and a
``done.json`` with a hash of everything that decided the result; a finished stage is recognised by it and not
repeated, an interrupted one goes on from its checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.files import sha256, writable_dir, write_json, write_text
from toolkit.progress import note
from toolkit.recipe import Recipe
from train.compress.distill import distillation_loss
from train.compress.prune import prune_student
from train.data.clips import Augment, Pictures, load_pictures, normalise
from train.data.index import Dataset, index_clips
from train.evaluate import answer
from train.loop import Plan, fit
from train.models.mobilenet_v2 import IMAGENET, load_imagenet
from train.models.store import Card, Loaded, Model, build, load_model, save_model
from train.models.student import StreamStudent
from train.models.vit import TubeletViT
from train.objectives.masked import MaskedAutoencoder, tube_mask

__all__ = ["Data", "distill", "finetune", "open_data", "pretrain", "prune"]


@dataclass(frozen=True, slots=True)
class Data:
    """The decoded splits that training may see: never the test split."""

    index: Dataset
    train: Pictures
    val: Pictures | None
    augment: Augment


def open_data(recipe: Recipe, cache: Path | None = None) -> Data:
    """Index and decode the training and validation clips of a recipe.

    Raises:
        UserError: whatever is wrong with the data, in one line.
    """
    index = index_clips(recipe.data.root)
    train = load_pictures(index, "train", recipe.preprocess, recipe.data.frames, cache)
    has_val = any(clip.split == "val" for clip in index.clips)
    val = load_pictures(index, "val", recipe.preprocess, recipe.data.frames, cache) if has_val else None
    augment = Augment(recipe.preprocess, index.labels, recipe.data.mirror, recipe.data.flips)
    return Data(index, train, val, augment)


def pretrain(recipe: Recipe, out: Path) -> Path:
    """Masked video modelling of the teacher's encoder on the training clips; labels are not used."""

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.pretrain.seed)
        teacher = build(_card(recipe, "teacher", data.index.labels))
        assert isinstance(teacher, TubeletViT)
        model = MaskedAutoencoder(teacher, recipe.pretrain.decoder_dim, recipe.pretrain.decoder_depth)

        def loss(pictures: npt.NDArray[np.uint8], labels: Tensor, generator: torch.Generator) -> Tensor:
            clips, _ = data.augment(pictures, labels, generator)
            mask = tube_mask(len(clips), teacher.grid, recipe.pretrain.mask_ratio, generator)
            value: Tensor = model(clips.transpose(1, 2), mask)
            return value

        fit(Plan("pretrain (masked)", model, loss, recipe.pretrain), data.train, out)
        return teacher

    return _stage("pretrain", recipe, ("teacher", "pretrain"), {}, out, "teacher", work)


def finetune(recipe: Recipe, out: Path, init: Path | None = None) -> Path:
    """Supervised training of the teacher, from ``init`` (a pretrained encoder) or from scratch."""
    start = load_model(init) if init is not None else None

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.finetune.seed)
        teacher = build(_card(recipe, "teacher", data.index.labels))
        if start is not None:
            _copy_encoder(start, teacher)
        teacher.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

        def loss(pictures: npt.NDArray[np.uint8], labels: Tensor, generator: torch.Generator) -> Tensor:
            clips, labels = data.augment(pictures, labels, generator)
            smoothing = recipe.finetune.label_smoothing
            return functional.cross_entropy(teacher(clips.transpose(1, 2)), labels, label_smoothing=smoothing)

        plan = Plan(
            "fine-tune teacher", teacher, loss, recipe.finetune, _validator(teacher, data, recipe), _layer_rates(recipe)
        )
        fit(plan, data.train, out)
        return teacher

    return _stage("finetune", recipe, ("teacher", "finetune"), _parents(init=init), out, "teacher", work)


def distill(recipe: Recipe, out: Path, teacher: Path | None = None) -> Path:
    """Train the streaming student on labels and, if there is one, on the teacher's soft answers."""
    guide = load_model(teacher).model if teacher is not None else None

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.distill.seed)
        student = build(_card(recipe, "student", data.index.labels))
        assert isinstance(student, StreamStudent)
        _start_from(student, recipe)
        _train_student(student, guide, data, recipe, recipe.distill.epochs, recipe.distill.lr, "distil student", out)
        return student

    return _stage("distill", recipe, ("student", "distill"), _parents(teacher=teacher), out, "student", work)


def prune(recipe: Recipe, out: Path, student: Path, teacher: Path | None = None) -> Path:
    """Remove channels from a trained student and recover by distillation."""
    loaded = load_model(student)
    guide = load_model(teacher).model if teacher is not None else None
    if not isinstance(loaded.model, StreamStudent):
        raise UserError(f"model {student} is a clip model: only streaming students are pruned")

    def work(data: Data) -> Model:
        torch.manual_seed(recipe.prune.seed)
        pruned = loaded.model
        assert isinstance(pruned, StreamStudent)

        def loss() -> Tensor:
            clips = normalise(data.train.pictures[:32], recipe.preprocess)
            labels = torch.from_numpy(data.train.labels[:32])
            return distillation_loss(pruned(clips), labels, None, 0.0, 1.0, warmup=pruned.contract().warmup)

        prune_student(pruned, recipe.prune, loss)
        _train_student(pruned, guide, data, recipe, recipe.prune.epochs, recipe.prune.lr, "recover pruned student", out)
        return pruned

    return _stage(
        "prune", recipe, ("prune", "distill"), _parents(student=student, teacher=teacher), out, "student", work
    )


def _train_student(
    student: StreamStudent,
    guide: Model | None,
    data: Data,
    recipe: Recipe,
    epochs: int,
    lr: float,
    label: str,
    out: Path,
) -> None:
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config, warmup = recipe.distill, student.contract().warmup

    def loss(pictures: npt.NDArray[np.uint8], labels: Tensor, generator: torch.Generator) -> Tensor:
        clips, labels = data.augment(pictures, labels, generator)
        soft = None
        if guide is not None:
            with torch.no_grad():
                soft = guide(clips.transpose(1, 2))
        logits = student(clips)
        return distillation_loss(logits, labels, soft, config.alpha, config.temperature, config.label_smoothing, warmup)

    optim = config.model_copy(update={"epochs": epochs, "lr": lr})
    fit(Plan(label, student, loss, optim, _validator(student, data, recipe)), data.train, out)


def _start_from(student: StreamStudent, recipe: Recipe) -> None:
    source = recipe.student.pretrained
    if source is None:
        return
    if str(source) == "imagenet":
        load_imagenet(student, IMAGENET)
    elif source.is_dir():
        state = load_model(source).model.state_dict()
        own = student.state_dict()
        student.load_state_dict({n: t for n, t in state.items() if n in own and own[n].shape == t.shape}, strict=False)
    else:
        load_imagenet(student, source)


def _copy_encoder(start: Loaded, teacher: Model) -> None:
    state = {name: tensor for name, tensor in start.model.state_dict().items() if not name.startswith("head.")}
    try:
        teacher.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(
            "the pretrained encoder has another shape than the recipe's teacher: use the same [teacher]"
        ) from error


def _validator(model: Model, data: Data, recipe: Recipe) -> Callable[[], float] | None:
    val = data.val
    return None if val is None else lambda: answer(model, val, recipe.preprocess).accuracy


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


def _card(recipe: Recipe, kind: str, labels: tuple[str, ...]) -> Card:
    config = recipe.teacher if kind == "teacher" else recipe.student
    return Card.model_validate({
        "kind": kind, "config": config.model_dump(mode="json"), "labels": labels,
        "preprocess": recipe.preprocess, "frames": recipe.data.frames,
    })  # fmt: skip


def _parents(**folders: Path | None) -> dict[str, str]:
    return {name: sha256(folder / "model.safetensors") for name, folder in folders.items() if folder is not None}


def _stage(
    name: str, recipe: Recipe, sections: tuple[str, ...], parents: dict[str, str], out: Path, kind: str,
    work: Callable[[Data], Model],
) -> Path:  # fmt: skip
    """Skip a finished stage, else do ``work`` and leave model, recipe and ``done.json``."""
    resolved = json.loads(recipe.model_dump_json())
    decided = {key: resolved[key] for key in (*sections, "data", "preprocess")}
    del decided["data"]["root"]  # the same clips under another path are the same data
    clips = index_clips(recipe.data.root).digest()
    text = json.dumps([name, decided, clips, parents], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    done, started = out / "done.json", out / "started.json"
    if _says(done, key):
        note(f"  {name}: already done in {out}")
        return out
    writable_dir(out)
    if (out / "checkpoint.safetensors").is_file() and not _says(started, key):
        (out / "checkpoint.safetensors").unlink()  # of other settings: cannot be continued
    done.unlink(missing_ok=True)
    write_json(started, {"key": key})
    data = open_data(recipe, out.parent / "cache")
    model = work(data)
    labels = data.index.labels
    card = _card(recipe, kind, labels).model_copy(update={"lineage": {"stage": name, "parents": parents}})
    save_model(out, model, card)
    write_text(out / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    result: dict[str, Any] = {"key": key, "stage": name}
    if data.val is not None:
        result["validation"] = answer(model, data.val, recipe.preprocess).accuracy if name != "pretrain" else None
    write_json(done, result)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return out


def _says(file: Path, key: str) -> bool:
    try:
        return bool(json.loads(file.read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False
