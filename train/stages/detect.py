"""Training a detector on a COCO file: the streaming student, or the head on a clip encoder.

The same agreement as the other stages: a finished stage is recognised by ``done.json`` and not repeated, an
interrupted one goes on from its checkpoint. The best weights by average precision on the validation split win.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolkit.boxed import BoxedPicture
from toolkit.coco import BoxData, FrameBoxes, read_coco
from toolkit.detection import Found, to_picture
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.preprocess import Preprocess
from toolkit.progress import note
from toolkit.recipe import DetectionConfig, PruneConfig, Recipe
from train.compress.prune import prune_student
from train.data.batch import Batch
from train.data.clips import normalise
from train.detect.clip import ClipDetector
from train.detect.features import FeatureWindows, features_of
from train.detect.source import BoxedVideo, Windows, augment, load_boxed
from train.detect.teacher import FastestDet, refine
from train.loop import Plan, fit, is_main, main_first, wait_for_all
from train.models.pretrained import copy_encoder
from train.models.pretrained import start_from as encoder_from
from train.models.store import Card, Model, build, load_model, save_model
from train.models.student import StreamStudent
from train.stages.common import (
    begin,
    finish,
    finished,
    frozen_norms,
    own_weights,
    parents_of,
    run_folder,
    start_from,
    take_backbone,
)
from train.tasks.detection import Detection

Loss = Callable[[Batch, torch.Generator], Tensor]

__all__ = ["answers_of", "detect_encoder", "detect_student", "detection_of", "only_head", "prune_detector", "rates_of"]


def detect_student(recipe: Recipe, out: Path, init: Path | None = None) -> Path:
    """Train the streaming student as a detector, from ``init`` (a student's folder, pruned or not) or from scratch."""
    if init is not None and not isinstance(load_model(init).model, StreamStudent):
        raise UserError(f"model {init} is a clip model: a streaming detector starts from a student")
    student = recipe.student.model_copy(update={"readout": "boxes"})
    return _run(recipe, out, "student", student.model_dump(mode="json"), init)


def prune_detector(recipe: Recipe, out: Path, init: Path) -> Path:
    """Remove channels from a trained streaming detector by magnitude and train on for ``prune.epochs``."""
    loaded = load_model(init)
    if not isinstance(loaded.model, StreamStudent) or loaded.contract.detection is None:
        raise UserError(f"model {init} is no streaming detector: only those are pruned when task is detection")
    shorter = {"epochs": recipe.prune.epochs, "lr": recipe.prune.lr}
    recipe = recipe.model_copy(update={"detection": recipe.detection.model_copy(update=shorter)})
    return _run(recipe, out, "student", loaded.card.config, init, recipe.prune)


def detect_encoder(recipe: Recipe, out: Path, init: Path | None = None) -> Path:
    """Train the head on a clip encoder, from ``init`` (a pretrained encoder) or from scratch."""
    config = {"encoder": recipe.teacher.model_dump(mode="json"), "boxes": recipe.detection.head.model_dump(mode="json")}
    return _run(recipe, out, "detector", config, init)


def detection_of(model: Model, labels: tuple[str, ...], recipe: Recipe) -> Detection:
    """The task for this detector.

    Raises:
        UserError: the model has no boxes.
    """
    spec = model.contract().detection
    if spec is None:
        raise UserError('this model answers with classes, not boxes: train it with task = "detection"')
    return Detection(labels, spec, box_weight=recipe.detection.box_weight)


def answers_of(model: Model, pictures: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Answers (T, N) along one video (T, H, W, 3), in eval mode: a stream, or a window that ends at each frame."""
    training = model.training
    model.eval()
    frames = normalise(pictures, preprocess).to(next(model.parameters()).device)
    with torch.no_grad():
        if isinstance(model, StreamStudent):
            answers = model(frames[None])[0]
        else:
            past = torch.cat([frames[:1].expand(model.frames - 1, -1, -1, -1), frames])
            windows = past.unfold(0, model.frames, 1).permute(0, 1, 4, 2, 3)
            answers = torch.cat([model(windows[i : i + 16]) for i in range(0, len(windows), 16)])
    model.train(training)
    table: npt.NDArray[np.float32] = answers.float().cpu().numpy()
    return table


def _run(
    recipe: Recipe, out: Path, kind: str, config: dict[str, Any], init: Path | None, shrink: PruneConfig | None = None
) -> Path:
    given = recipe.teacher.pretrained if kind == "detector" else own_weights(recipe.student)
    parents = parents_of(init=init or given)
    data = read_coco(recipe.data.root)
    own = {"kind": kind, "config": config, "parents": parents, "prune": shrink and shrink.model_dump(mode="json")}
    decided = {**_decided(recipe), **own}
    key = _key(decided, data)
    if finished(out, key):
        note(f"  detection: already done in {out}")
        return out
    card = Card.model_validate({
        "kind": kind, "config": config, "labels": data.labels, "preprocess": recipe.preprocess,
        "frames": recipe.data.frames, "lineage": {"stage": "detection", "parents": parents},
    })  # fmt: skip
    with run_folder(out):
        with main_first(recipe.run):
            if is_main():
                begin(out, key, decided, recipe)
        model, best = _train(recipe, data, card, init, out, shrink)
        if is_main():
            save_model(out, model, card)
            result = {"stage": "detection", "metric": "AP", "validation": best}
            finish(out, key, result | _tested(model, data, recipe, out / "figures"))
        wait_for_all()
    return out


def _tested(model: Model, data: BoxData, recipe: Recipe, figures: Path) -> dict[str, Any]:
    """The figures of the test split, which is answered once and decides nothing; none without one."""
    if not any(part.split == "test" for part in data.footage):
        return {}
    videos = load_boxed(data.split("test"), recipe.preprocess, "evaluate")
    task = detection_of(model, data.labels, recipe)
    answers = np.concatenate([answers_of(model, video.pictures, recipe.preprocess) for video in videos])
    truth = [frame for video in videos for frame in video.truth]
    task.figures(figures, answers, truth)
    return {"test": {**task.metrics(answers, truth), "split": "test"}}


def _train(
    recipe: Recipe, data: BoxData, card: Card, init: Path | None, out: Path, shrink: PruneConfig | None
) -> tuple[Model, float | None]:
    config, preprocess = recipe.detection, recipe.preprocess
    torch.manual_seed(config.seed)
    model = build(card)
    if init is not None:
        model = _started(model, load_model(init).model, init)
    elif isinstance(model, StreamStudent):
        start_from(model, recipe)
    else:
        assert isinstance(model, ClipDetector)
        encoder_from(model.encoder, recipe.teacher.pretrained)
    if isinstance(model, StreamStudent):
        if shrink is not None:
            prune_student(model, shrink.model_copy(update={"importance": "magnitude"}))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = detection_of(model, data.labels, recipe)
    videos = load_boxed(data.split("train"), preprocess, "decode train", _lesson(recipe, data))
    has_val = any(part.split == "val" for part in data.footage)
    if not has_val and is_main():
        note(f"boxes {data.path} have no video of split 'val': nothing chooses the weights")
    val = load_boxed(data.split("val"), preprocess, "decode val") if has_val else []
    validate = _validator(model, task, val, preprocess) if val else None
    windows: Windows | FeatureWindows = Windows(videos, recipe.data.frames)
    rates = rates_of(model, config.freeze)
    if only_head(model, config.freeze):
        assert isinstance(model, StreamStudent)
        windows = FeatureWindows(model, videos, recipe.data.frames, preprocess, config)
        loss, validate = _head_loss(model, task), _head_validator(model, task, val, preprocess) if val else None
    else:
        loss = _loss(model, task, preprocess, config, frozen_norms(model, rates))
    plan = Plan("train detector", model, loss, config, validate, rates, run=recipe.run)
    return model, fit(plan, windows, out).best


def _loss(
    model: Model, task: Detection, preprocess: Preprocess, config: DetectionConfig, frozen: list[nn.Module]
) -> Loss:
    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        for norm in frozen:
            norm.eval()  # the loop has put the whole model into training mode
        clips, boxes, labels = augment(batch, preprocess, config.mirror, config.zoom, generator)
        moved = dataclasses.replace(batch, boxes=boxes, box_labels=labels)
        if isinstance(model, ClipDetector):
            return task.loss(moved, model.frames_answer(clips.transpose(1, 2)))
        return task.loss(moved, model(clips))

    return loss


def only_head(model: Model, freeze: int) -> bool:
    """Whether nothing but the head is trained and the backbone sees single frames: then features are computed once."""
    if not isinstance(model, StreamStudent):
        return False
    single = model.config.temporal == "none" and not model.config.look_back
    return single and freeze >= len(model.blocks)


def _head_loss(model: StreamStudent, task: Detection) -> Loss:
    return lambda batch, generator: task.loss(batch, model.readout.clip(batch.first))


def _head_validator(
    model: StreamStudent, task: Detection, videos: list[BoxedVideo], preprocess: Preprocess
) -> Callable[[], float]:
    maps = [features_of(model, normalise(video.pictures, preprocess)) for video in videos]
    truth = [frame for video in videos for frame in video.truth]

    def precision() -> float:
        device = next(model.parameters()).device
        with torch.no_grad():
            answers = torch.cat([model.readout.clip(each[None].to(device))[0] for each in maps])
        return float(task.metrics(answers.float().cpu().numpy(), truth)[task.chooses])

    return precision


def _started(model: Model, start: Model, source: Path) -> Model:
    """The model with the start's weights; a streaming detector, pruned or not, is itself the start.

    Raises:
        UserError: the start is another encoder or backbone.
    """
    if isinstance(model, ClipDetector):
        copy_encoder(model.encoder, start, str(source))
        return model
    if start.contract().detection is not None:
        return start
    assert isinstance(model, StreamStudent)
    take_backbone(model, start, source)
    return model


def rates_of(model: Model, freeze: int) -> Callable[[str], float]:
    """Zero for the first ``freeze`` blocks of the backbone and what stands before them, by the parameters' names."""
    prefix = "encoder." if isinstance(model, ClipDetector) else ""
    order = model.encoder.layers() if isinstance(model, ClipDetector) else _layers(model)
    frozen = tuple(f"{prefix}{layer}." for layer in order[: freeze + 1]) if freeze else ()
    return lambda name: 0.0 if name.startswith(frozen) and frozen else 1.0


def _layers(model: Model) -> list[str]:
    """Prefixes of the parameters of a student's backbone."""
    assert isinstance(model, StreamStudent)
    return ["stem", *(f"blocks.{index}" for index in range(len(model.blocks)))]


def _validator(model: Model, task: Detection, videos: list[BoxedVideo], preprocess: Preprocess) -> Callable[[], float]:
    def precision() -> float:
        answers = np.concatenate([answers_of(model, video.pictures, preprocess) for video in videos])
        truth = [frame for video in videos for frame in video.truth]
        return float(task.metrics(answers, truth)[task.chooses])

    return precision


def _lesson(recipe: Recipe, data: BoxData) -> Callable[[BoxedPicture], FrameBoxes | None]:
    """What is learned from a training picture: its annotation, the teacher's boxes, or the one refined by the other."""
    config, preprocess = recipe.detection, recipe.preprocess
    if config.use == "annotations":
        return lambda seen: seen.truth
    if config.teacher is None or config.teacher_labels is None:
        raise UserError(f'detection.use = "{config.use}" needs detection.teacher and detection.teacher_labels')
    teacher = FastestDet(config.teacher, config.teacher_labels, data.labels, config.rename)

    def moved(found: Found, seen: BoxedPicture) -> Found:
        boxes = to_picture(found.boxes, preprocess, *seen.frame.shape[:2])
        return Found(boxes, found.scores, found.labels)

    def lesson(seen: BoxedPicture) -> FrameBoxes | None:
        if config.use == "teacher":
            found = moved(teacher(seen.frame, config.teacher_score), seen)
            return FrameBoxes(found.boxes, found.labels)
        if seen.truth is None:
            return None
        return refine(seen.truth, moved(teacher.every(seen.frame, config.teacher_score), seen))

    return lesson


def _decided(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide the result."""
    resolved = json.loads(recipe.model_dump_json())
    decided: dict[str, Any] = {key: resolved[key] for key in ("detection", "data", "preprocess")}
    decided["run"] = {key: resolved["run"][key] for key in ("precision", "accumulate")}  # the rest is how, not what
    for where in ("root", "videos", "device"):  # the same data found elsewhere are the same data
        del decided["data"][where]
    return decided


def _key(decided: dict[str, Any], data: BoxData) -> str:
    """Changes with everything that decides the result: settings, starting weights, annotations, footage."""
    sizes = [(part.path.name, part.path.stat().st_size if part.path.is_file() else 0) for part in data.footage]
    text = json.dumps([decided, sha256(data.path), sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
