"""Training a detector from a COCO file: it learns, resumes, prunes, starts from others, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.boxes import boxes_recipe, write_boxes
from toolkit.coco import FrameBoxes, read_coco
from toolkit.detection import Found
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.precision import box_precision
from toolkit.recipe import Recipe
from train.data.clips import normalise
from train.detect.features import FeatureWindows
from train.detect.source import Windows, load_boxed
from train.detect.teacher import FastestDet
from train.models.store import load_model
from train.models.student import StreamStudent, build_student
from train.stages import distill, finetune, prune
from train.stages.detect import answers_of, detect_student, detection_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"))


def _precision(folder: Path, data: Path, split: str) -> float:
    recipe = boxes_recipe(data)
    loaded = load_model(folder)
    videos = load_boxed(read_coco(data).split(split), recipe.preprocess)
    answers = np.concatenate([answers_of(loaded.model, v.pictures, recipe.preprocess) for v in videos])
    truth = [frame for video in videos for frame in video.truth]
    return float(detection_of(loaded.model, loaded.card.labels, recipe).metrics(answers, truth)["ap50"])


def test_a_student_learns_one_clip_by_heart(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data", ("train",))
    folder = distill(boxes_recipe(data, epochs=60, zoom=1.0, mirror=False, lr=1e-2), tmp_path / "student")
    assert _precision(folder, data, "train") > 0.9
    assert json.loads((folder / "done.json").read_text())["validation"] is None


def test_a_frozen_backbone_is_asked_once_and_the_head_learns(data: Path, tmp_path: Path) -> None:
    recipe = _head_only(data, epochs=30, lr=1e-2, freeze=9, copies=2, zoom=0.95)
    start = build_student(recipe.student.model_copy(update={"readout": "boxes"}), 2, (3, 48, 80), 4)
    folder = distill(recipe, tmp_path / "student")
    model = load_model(folder).model
    assert isinstance(model, StreamStudent)
    done = json.loads((folder / "done.json").read_text())
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert done["metric"] == "AP"
    assert losses[-1] < 0.7 * losses[0]
    other = load_model(distill(_head_only(data, epochs=1, lr=1e-2, freeze=9, copies=2), tmp_path / "short")).model
    for name, weight in model.state_dict().items():
        same = torch.equal(weight, other.state_dict()[name])
        assert same == (not name.startswith("readout.")) or "num_batches" in name, name
    assert start.contract() == model.contract()


def test_feature_windows_are_the_pictures_windows_seen_by_the_backbone(data: Path) -> None:
    recipe = _head_only(data, copies=1)
    torch.manual_seed(0)
    model = build_student(recipe.student.model_copy(update={"readout": "boxes"}), 2, (3, 48, 80), 4).eval()
    videos = load_boxed(read_coco(data).split("train"), recipe.preprocess)
    features = FeatureWindows(model, videos, 4, recipe.preprocess, recipe.detection).batch([1, 0], 3)
    pictures = Windows(videos, 4)
    assert len(pictures) == 4
    shifts = [features.boxes[row, 0, 0, 0].item() for row in range(2)]  # type: ignore[index]
    for row, left in enumerate(shifts):
        start = next(t for t, frame in enumerate(videos[0].truth) if frame is not None and frame.boxes[0, 0] == left)
        clip = normalise(videos[0].pictures[start : start + 4], recipe.preprocess)[None]
        with torch.no_grad():
            assert torch.allclose(model.readout.clip(features.pictures[row]), model(clip), atol=1e-5)


def _head_only(data: Path, **detection: Any) -> Recipe:
    """The student sees single frames; its head remembers."""
    recipe = boxes_recipe(data, **detection)
    boxes = recipe.student.boxes.model_copy(update={"kernel": 3})
    student = recipe.student.model_copy(update={"temporal": "none", "look_back": False, "boxes": boxes})
    return recipe.model_copy(update={"student": student})


def test_a_finished_detector_is_not_trained_again_and_a_changed_one_is(data: Path, tmp_path: Path) -> None:
    folder = distill(boxes_recipe(data), tmp_path / "s")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    distill(boxes_recipe(data), folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    distill(boxes_recipe(data, lr=1e-3), folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns > before


def test_the_same_recipe_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    one, two = (distill(boxes_recipe(data), tmp_path / name) for name in ("one", "two"))
    assert sha256(one / "model.safetensors") == sha256(two / "model.safetensors")


def test_a_detector_is_pruned_and_saved(data: Path, tmp_path: Path) -> None:
    recipe = boxes_recipe(data).model_copy(update={"prune": boxes_recipe(data).prune.model_copy(update={"epochs": 1})})
    student = distill(recipe, tmp_path / "student")
    pruned = load_model(prune(recipe, tmp_path / "pruned", student)).model
    whole = load_model(student).model
    count = [sum(p.numel() for p in model.parameters()) for model in (pruned, whole)]
    assert count[0] < 0.8 * count[1]
    assert pruned.contract().answer_width == whole.contract().answer_width


def test_a_clip_encoder_gets_the_head_and_starts_from_pretrained_weights(data: Path, tmp_path: Path) -> None:
    recipe = boxes_recipe(data)
    first = finetune(recipe, tmp_path / "first")
    second = finetune(boxes_recipe(data, lr=1e-9), tmp_path / "second", _encoder(tmp_path, data))
    model = load_model(second).model
    assert model.contract().kind == "clip"
    assert model.contract().detection is not None
    start = load_model(tmp_path / "encoder").model.state_dict()
    weights = model.state_dict()
    name = next(name for name, weight in start.items() if weight.ndim == 5)
    assert torch.allclose(weights[f"encoder.{name}"], start[name], atol=1e-5)
    assert not torch.allclose(load_model(first).model.state_dict()[f"encoder.{name}"], start[name])


@pytest.mark.parametrize("kind", ["student", "encoder"])
def test_frozen_blocks_keep_their_batch_norms_statistics(kind: str, data: Path, tmp_path: Path) -> None:
    recipe = boxes_recipe(data, freeze=2, epochs=2)
    cnn = recipe.teacher.model_copy(update={"encoder": "r2plus1d", "width": 0.1})
    recipe = recipe.model_copy(update={"teacher": cnn})
    train, prefix = (distill, "") if kind == "student" else (finetune, "encoder.")
    norms = load_model(train(recipe, tmp_path / kind)).model.state_dict()
    blocks = ("stem", "blocks.0.", "blocks.1.") if kind == "student" else ("stem", "layer1.")
    moved = {name for name, value in norms.items() if name.endswith("num_batches_tracked") and value > 0}
    frozen = tuple(f"{prefix}{block}" for block in blocks)
    assert any(name.startswith(frozen) for name in norms)
    assert not [name for name in moved if name.startswith(frozen)]
    assert moved


@pytest.mark.parametrize(
    ("teacher", "frames", "message"),
    [
        ({"merge": 4}, 4, "teacher.merge joins tokens"),
        ({"encoder": "r2plus1d", "width": 0.1}, 9, "2 maps of 9 frames.*a multiple of 2, for example 10"),
    ],
)
def test_an_encoder_that_cannot_answer_for_every_frame_is_said(
    teacher: dict[str, Any], frames: int, message: str, data: Path, tmp_path: Path
) -> None:
    raw = boxes_recipe(data).model_dump(mode="json")
    recipe = Recipe.model_validate(
        {**raw, "teacher": {**raw["teacher"], **teacher}, "data": {**raw["data"], "frames": frames}}
    )
    with pytest.raises(UserError, match=message):
        finetune(recipe, tmp_path / "encoder")


def test_a_detector_starts_from_the_same_backbone_only(data: Path, tmp_path: Path) -> None:
    recipe, encoder = boxes_recipe(data), _encoder(tmp_path, data)
    deeper = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"depth": 3})})
    with pytest.raises(UserError, match=r"do not fit vit: blocks.2.norm1.weight is absent"):
        finetune(deeper, tmp_path / "a", encoder)
    with pytest.raises(UserError, match="is a clip model"):
        detect_student(recipe, tmp_path / "b", encoder)


def _encoder(tmp_path: Path, data: Path) -> Path:
    """A saved encoder as pretraining leaves it."""
    from train.models.store import Card, build, save_model

    recipe = boxes_recipe(data)
    torch.manual_seed(7)
    card = Card.model_validate({
        "kind": "teacher", "config": recipe.teacher.model_dump(mode="json"), "labels": ("x", "y"),
        "preprocess": recipe.preprocess, "frames": recipe.data.frames,
    })  # fmt: skip
    save_model(tmp_path / "encoder", build(card), card)
    return tmp_path / "encoder"


def test_what_a_detector_cannot_start_from_is_said(data: Path, tmp_path: Path) -> None:
    recipe = boxes_recipe(data)
    with pytest.raises(UserError, match=r"detection\.teacher"):
        distill(recipe, tmp_path / "a", teacher=tmp_path)
    with pytest.raises(UserError, match=r"needs detection\.teacher and detection.teacher_labels"):
        distill(boxes_recipe(data, use="both"), tmp_path / "b")
    with pytest.raises(UserError, match="is no streaming detector"):
        prune(recipe, tmp_path / "c", _encoder(tmp_path, data))


def test_what_is_found_in_a_crowd_is_not_wrong_and_a_crowd_need_not_be_found(tmp_path: Path) -> None:
    file = write_boxes(tmp_path, ("val",))
    raw = json.loads(file.read_text())
    for entry in raw["annotations"][1:16:2]:  # the dark square of the first eight frames
        entry["iscrowd"] = 1
    file.write_text(json.dumps(raw))
    recipe = boxes_recipe(file)
    truth = [frame for frame in load_boxed(read_coco(file).split("val"), recipe.preprocess)[0].truth if frame]
    assert [len(frame.labels) for frame in truth] == [1] * 8 + [2] * 8
    found = []
    for frame in truth:
        parts = [(frame, 0.8)]
        if frame.crowd is not None:
            left = frame.crowd.boxes * np.asarray([1, 1, 0, 1]) + [0, 0, frame.crowd.boxes[0, 0] + 9, 0]
            parts.append((FrameBoxes(left.astype(np.float32), frame.crowd.labels), 0.9))  # one of the crowd
        boxes, labels = (np.concatenate([getattr(part, key) for part, _ in parts]) for key in ("boxes", "labels"))
        scores = np.concatenate([np.full(len(part.labels), score, np.float32) for part, score in parts])
        found.append(Found(boxes, scores, labels))
    with_crowd = box_precision(truth, found, ("bright", "dark"))
    assert (with_crowd.ap, with_crowd.boxes) == (1.0, 24)
    assert box_precision([FrameBoxes(t.boxes, t.labels) for t in truth], found, ("bright", "dark")).ap < 0.8
    missed = box_precision(truth, [Found(t.boxes, np.full(len(t.labels), 0.8, np.float32), t.labels) for t in truth],
                           ("bright", "dark"))  # fmt: skip
    assert missed.ap == 1.0


def test_the_test_split_is_reported_once_and_decides_nothing(tmp_path: Path) -> None:
    with_test = write_boxes(tmp_path / "a", ("train", "val", "test"))
    out = distill(boxes_recipe(with_test), tmp_path / "s")
    done = json.loads((out / "done.json").read_text())
    assert done["test"]["ap50"] == pytest.approx(_precision(out, with_test, "test"))
    assert (done["test"]["frames"], done["test"]["boxes"], done["test"]["split"]) == (16, 32, "test")
    assert (out / "figures" / "precision.png").is_file()
    without = load_model(distill(boxes_recipe(write_boxes(tmp_path / "b")), tmp_path / "t")).model.state_dict()
    assert all(torch.equal(value, without[name]) for name, value in load_model(out).model.state_dict().items())


def test_a_teacher_that_is_missing_or_of_another_kind_is_said(tmp_path: Path) -> None:
    names, model = tmp_path / "names.txt", tmp_path / "teacher.onnx"
    names.write_text("person\ncar\n")
    with pytest.raises(UserError, match="does not exist"):
        FastestDet(model, names, ("person",))
    model.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"has no class 'persn' \(did you mean 'person'\?\)"):
        FastestDet(model, names, ("persn",))
    with pytest.raises(UserError, match="is not a readable ONNX file"):
        FastestDet(model, names, ("person", "car"))
