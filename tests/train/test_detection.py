"""Losses, assignment and augmentation of the detector, each against an independent account of the same thing."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boxes import COLS, LABELS, ROWS
from toolkit.coco import FrameBoxes
from toolkit.detection import DetectionSpec, Found, Level, decode
from toolkit.preprocess import Preprocess
from toolkit.recipe import BoxesConfig, StudentConfig, TeacherConfig
from train.data.batch import Batch
from train.detect.assign import assign, boxes_of, locations, split_answer
from train.detect.clip import ClipDetector
from train.detect.loss import detection_loss, focal_loss, giou
from train.detect.source import BoxedVideo, Windows, augment, padded
from train.detect.teacher import refine
from train.models.student import build_student
from train.models.vit import TubeletViT
from train.tasks import Task, make_task

SPEC = DetectionSpec(levels=(Level(stride=8, rows=6, cols=10),))
TWO = DetectionSpec(levels=(Level(stride=8, rows=6, cols=10), Level(stride=16, rows=3, cols=5)))
SIDES = st.tuples(st.floats(0, 60), st.floats(0, 32), st.floats(1, 20), st.floats(1, 16))


def test_focal_loss_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=200) * 3, rng.integers(0, 2, 200)
    p = 1 / (1 + np.exp(-logits))
    p_t, alpha_t = np.where(target == 1, p, 1 - p), np.where(target == 1, 0.25, 0.75)
    want = -alpha_t * (1 - p_t) ** 2 * np.log(p_t)
    got = focal_loss(torch.from_numpy(logits), torch.from_numpy(target).double())
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_generalised_iou_agrees_with_counting_by_hand(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    boxes = [[[x, y, x + w, y + h] for x, y, w, h in pair] for pair in pairs]
    table = torch.tensor(boxes, dtype=torch.float64)
    general, plain = giou(table[:, 0], table[:, 1])
    for (a, b), got, iou in zip(boxes, general.tolist(), plain.tolist(), strict=True):
        wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        both = wide * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        assert iou == pytest.approx(both / union, abs=1e-9)
        assert got == pytest.approx(both / union - (hull - union) / hull, abs=1e-9)


@given(st.lists(st.tuples(SIDES, st.integers(0, 2)), min_size=0, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_assignment_keeps_its_promises(found: list[tuple[tuple[float, ...], int]], two: bool) -> None:
    spec = TWO if two else SPEC
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in found]).reshape(1, -1, 4)
    labels = torch.tensor([[label for _, label in found]], dtype=torch.int64).reshape(1, -1)
    given_ = assign(boxes, labels, spec)
    centres, strides = locations(spec)
    for place in torch.nonzero(given_.positive[0]).flatten().tolist():
        # Who is positive answers for a true box of its own label, near its centre or the nearest there is.
        same = (boxes[0] == given_.boxes[0, place]).all(1) & (labels[0] == given_.labels[0, place])
        assert same.any()
        box = given_.boxes[0, place]
        middle = (box[:2] + box[2:]) / 2
        own = strides == strides[place]
        nearest = (centres[own] - middle).square().sum(1).min()
        inside = bool((centres[place] > box[:2]).all() and (centres[place] < box[2:]).all())
        assert inside or (centres[place] - middle).square().sum() == nearest
    # The smallest box always gets a location, and the order of the boxes does not matter.
    assert given_.positive.any() == bool(found)
    turned = assign(boxes.flip(1), labels.flip(1), spec)
    areas = (boxes[0, :, 2:] - boxes[0, :, :2]).prod(1)
    if len(set(areas.tolist())) == len(found):
        assert torch.equal(turned.labels, given_.labels)


def test_padding_is_no_box() -> None:
    boxes, labels = padded([FrameBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))])
    assert not assign(boxes, labels, SPEC).positive.any()
    assert detection_loss(torch.zeros(1, SPEC.width(3)), boxes, labels, 3, SPEC).isfinite()


def test_a_narrow_box_between_two_columns_is_still_somebodys() -> None:
    boxes = torch.tensor([[[7.0, 2.0, 9.0, 30.0]]])
    assert assign(boxes, torch.tensor([[1]]), SPEC).positive.any()


@pytest.mark.parametrize("spec", [SPEC, TWO], ids=["one level", "two levels"])
def test_training_and_decoding_read_an_answer_alike(spec: DetectionSpec) -> None:
    answer = torch.randn(4, spec.width(3))
    parts = split_answer(answer, 3, spec)
    edge = torch.tensor([80.0, 48.0, 80.0, 48.0])
    boxes = torch.minimum(boxes_of(parts.distances, spec).clamp(min=0), edge)
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdim=True)
    scores = (parts.scores.sigmoid() * parts.quality.sigmoid()[..., None]).sqrt() * solid
    for frame in range(4):
        found = decode(answer[frame].numpy(), 3, spec, score=0.6)
        place, label = divmod(int(scores[frame].flatten().argmax()), 3)
        assert found.scores[0] == pytest.approx(scores[frame, place, label].item(), abs=1e-6)
        np.testing.assert_allclose(found.boxes[0], boxes[frame, place].numpy(), atol=1e-4)


def test_gradients_pull_an_answer_to_the_truth() -> None:
    torch.manual_seed(0)
    boxes, labels = torch.tensor([[[10.0, 8.0, 40.0, 30.0], [50.0, 5.0, 66.0, 44.0]]]), torch.tensor([[0, 2]])
    answer = torch.zeros(1, SPEC.width(3)).add_(torch.randn(1, SPEC.width(3)) * 0.01).requires_grad_()
    optimizer = torch.optim.Adam([answer], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        detection_loss(answer, boxes, labels, 3, SPEC).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = decode(answer.detach()[0].numpy(), 3, SPEC)
    assert sorted(found.labels.tolist()) == [0, 2]
    np.testing.assert_allclose(found.boxes[np.argsort(found.labels)], boxes[0].numpy(), atol=1.0)


def _painted(box: tuple[int, int, int, int]) -> BoxedVideo:
    """Twelve black frames with one white box."""
    pictures = np.zeros((12, ROWS, COLS, 3), np.uint8)
    left, top, right, bottom = box
    pictures[:, top:bottom, left:right] = 255
    truth = FrameBoxes(np.asarray([box], np.float32), np.zeros(1, np.int64))
    return BoxedVideo(pictures, (truth,) * 12, "painted")


@pytest.mark.parametrize("seed", range(6))
def test_augmented_boxes_follow_the_picture(seed: int) -> None:
    batch = Windows([_painted((20, 12, 52, 36))], 4).batch([0, 1], seed)
    generator = torch.Generator().manual_seed(seed)
    clips, boxes, labels = augment(batch, Preprocess(size=(ROWS, COLS)), True, 0.6, generator)
    for clip, box, label in zip(clips, boxes, labels, strict=True):
        assert int(label[0, 0]) == 0
        picture = clip[0, 0]
        rows, cols = torch.nonzero(picture > (picture.min() + picture.max()) / 2, as_tuple=True)
        seen = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).float()
        assert (seen - box[0, 0]).abs().max() <= 1.5


def test_a_box_that_augmentation_pushes_out_is_no_longer_asked_for() -> None:
    batch = Windows([_painted((0, 0, 8, 6))], 4).batch([0] * 64, 0)
    generator = torch.Generator().manual_seed(0)
    _, boxes, labels = augment(batch, Preprocess(size=(ROWS, COLS)), False, 0.5, generator)
    gone = labels[:, 0, 0] == -1
    assert gone.any()
    assert (~gone).any()
    assert (boxes[~gone, 0, 0, 2] > boxes[~gone, 0, 0, 0]).all()


def test_windows_are_a_pure_function_of_indices_and_seed() -> None:
    windows = Windows([_painted((20, 12, 52, 36))], 4)
    one, two = windows.batch([2, 0], 9), windows.batch([2, 0], 9)
    assert torch.equal(one.pictures, two.pictures)
    assert one.first.shape == (2, 4, ROWS, COLS, 3)


def test_rare_classes_come_more_often() -> None:
    common, rare = _painted((20, 12, 52, 36)), _painted((20, 12, 52, 36))
    other = FrameBoxes(rare.truth[0].boxes, np.ones(1, np.int64)) if rare.truth[0] is not None else None
    rare = dataclasses.replace(rare, truth=(other,) * 12)
    assert len(Windows([common] * 20 + [rare], 4)) > 21 * 3


def test_frames_without_annotation_do_not_count() -> None:
    task = make_task("detection", ("a", "b", "c"), spec=SPEC)
    answers = torch.randn(1, 2, SPEC.width(3))
    some = FrameBoxes(np.asarray([[8, 8, 30, 30]], np.float32), np.asarray([1], np.int64))

    def loss(frames: list[FrameBoxes | None], outputs: torch.Tensor) -> float:
        boxes, labels = padded(frames)
        nothing = torch.zeros(1, 1, 2, 1, 1, 3)
        return float(task.loss(
            Batch(nothing, torch.zeros(1), torch.zeros(1), boxes=boxes[None], box_labels=labels[None]), outputs
        ))  # fmt: skip

    assert loss([some, None], answers) == pytest.approx(loss([some], answers[:, :1]), abs=1e-6)


def test_the_task_keeps_the_protocol_and_perfect_answers_score_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.boxes import answer_for

    task = make_task("detection", LABELS, spec=SPEC)
    assert isinstance(task, Task)
    truth = [
        FrameBoxes(np.asarray([[8, 8, 30, 30], [40, 9, 61, 44]], np.float32), np.asarray([0, 1])),
        FrameBoxes(np.asarray([[3, 3, 30, 40]], np.float32), np.asarray([1])),
    ]
    answers = np.stack([answer_for(t.boxes.tolist(), t.labels.tolist(), 2, SPEC) for t in truth])
    metrics = task.metrics(answers, truth)
    assert metrics[task.chooses] == pytest.approx(1.0)
    assert metrics["boxes"] == 3
    (figure,) = task.figures(tmp_path_factory.mktemp("figures"), answers, truth)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("levels", "kernel", "temporal"), [(1, 1, "shift"), (2, 3, "none"), (1, 4, "conv")])
def test_the_clip_form_of_a_detector_equals_its_step_form(levels: int, kernel: int, temporal: str) -> None:
    torch.manual_seed(0)
    config = StudentConfig.model_validate({
        "width": 0.25, "blocks": 6, "look_back": temporal == "shift", "readout": "boxes", "temporal": temporal,
        "boxes": BoxesConfig(levels=levels, channels=16, kernel=kernel),
    })  # fmt: skip
    model = build_student(config, 3, (3, ROWS, COLS), 4).eval()
    contract = model.contract()
    assert contract.detection is not None
    assert contract.answer_width == contract.detection.width(3)
    clip = torch.randn(2, 5, 3, ROWS, COLS)
    states, answers = [torch.zeros(2, *spec.shape) for spec in contract.states], []
    with torch.no_grad():
        for frame in clip.unbind(1):
            answer, states = model.step(frame, states)
            answers.append(answer)
        whole = model(clip)
    assert (whole - torch.stack(answers, 1)).abs().max() < 1e-4
    assert not torch.allclose(whole[:, 1], whole[:, 2])


class _Maps(torch.nn.Module):
    """A clip encoder with feature maps, as 3-D CNNs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(3, 12, (2, 8, 8), (2, 8, 8))

    def contract(self) -> object:
        from toolkit.contract import Contract

        return Contract(kind="clip", frame=(3, ROWS, COLS), classes=3, frames=8)

    def forward_features(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(clip_BCTHW)
        return features


@pytest.mark.parametrize("kind", ["tokens", "maps"])
def test_the_head_on_a_clip_encoder_answers_for_every_frame(kind: str) -> None:
    torch.manual_seed(0)
    config = TeacherConfig(dim=24, depth=1, heads=2, tubelet=(2, 8, 8))
    encoder = TubeletViT(config, 3, (3, ROWS, COLS), 8) if kind == "tokens" else _Maps()
    model = ClipDetector(encoder, 3, BoxesConfig(channels=16)).eval()
    assert model.contract().detection == SPEC
    clip = torch.randn(2, 3, 8, ROWS, COLS)
    with torch.no_grad():
        every, last = model.frames_answer(clip), model(clip)
    assert every.shape == (2, 8, SPEC.width(3))
    assert torch.equal(every[:, -1], last)
    # A location of the map must see the part of the picture it stands for.
    clip[:, :, -2:, 40:48, 72:80] += 3.0
    with torch.no_grad():
        moved = split_answer(model(clip) - last, 3, SPEC).scores.abs().sum(-1)
    assert int(moved[0].argmax()) == SPEC.locations - 1 or kind == "tokens"


def test_a_teacher_moves_boxes_halfway_and_leaves_classes_alone() -> None:
    truth = FrameBoxes(np.asarray([[10, 10, 30, 30], [50, 10, 60, 20]], np.float32), np.asarray([2, 0]))
    teacher = Found(np.asarray([[12, 12, 32, 30]], np.float32), np.ones(1, np.float32), np.asarray([7]))
    better = refine(truth, teacher)
    np.testing.assert_allclose(better.boxes, [[11, 11, 31, 30], [50, 10, 60, 20]])
    assert better.labels.tolist() == [2, 0]
