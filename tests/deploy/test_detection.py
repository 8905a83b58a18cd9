"""A detector on the device: reading its answers, COCO files and their faults, exported files, command line, camera."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.camera import run_camera
from deploy.detect import agreement, evaluate_boxes, found_in
from deploy.export import export_bundle
from deploy.runtimes import Options, open_session
from deploy.sinks import EventSink, VideoSink
from deploy.trial import try_target
from deploy.verify import compare, replay, verify
from tests.boxes import COLS, LABELS, ROWS, answer_for, write_boxes
from tests.deploy.conftest import KEYS, PRECISIONS, RUNTIME_NAMES
from tests.toolkit.test_cli import refused, vidon
from toolkit.boxed import read_boxed
from toolkit.bundle import Bundle
from toolkit.coco import FrameBoxes, read_coco
from toolkit.contract import Contract
from toolkit.detection import DetectionSpec, Found, Level, decode, nms, to_frame, to_picture
from toolkit.errors import UserError
from toolkit.precision import box_precision
from toolkit.preprocess import Preprocess
from toolkit.recipe import BoxesConfig, StudentConfig
from train.models.student import StreamStudent, build_student

SPEC = DetectionSpec(levels=(Level(stride=8, rows=6, cols=10),))
CONTRACT = Contract(frame=(3, ROWS, COLS), classes=2, detection=SPEC)
PREPROCESS = Preprocess(size=(ROWS, COLS))


def _overlap(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    both = wide * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@given(st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1)),
    max_size=15, unique=True,
), st.floats(0.1, 0.9))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_suppression_equals_the_greedy_rule_written_out(rows: list[tuple[int, ...]], overlap: float) -> None:
    boxes = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h, _ in rows]
    labels = [row[4] for row in rows]
    scores = np.random.default_rng(len(rows)).permutation(len(rows)).astype(np.float32)
    kept: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: -scores[i]):
        if all(labels[k] != labels[index] or _overlap(boxes[k], boxes[index]) <= overlap for k in kept):
            kept.append(index)
    got = nms(np.asarray(boxes, np.float32).reshape(-1, 4), scores, np.asarray(labels, np.int64), overlap)
    assert got.tolist() == kept


def test_decoding_equals_loops_over_every_location_and_class() -> None:
    spec = DetectionSpec(levels=(Level(stride=8, rows=2, cols=3), Level(stride=16, rows=1, cols=2)), overlap=1.0)
    answer = np.random.default_rng(3).normal(size=spec.width(2)).astype(np.float32)
    want, start = [], 0
    for level in spec.levels:
        table = answer[start : start + 7 * level.rows * level.cols].reshape(7, level.rows, level.cols)
        start += table.size
        for row in range(level.rows):
            for col in range(level.cols):
                x, y, side = (col + 0.5) * level.stride, (row + 0.5) * level.stride, level.stride
                left, top, right, bottom = (float(v) * side for v in table[2:6, row, col])
                box = [max(0.0, x - left), max(0.0, y - top)]
                box += [min(level.cols * side, x + right), min(level.rows * side, y + bottom)]
                for label in range(2):
                    share = 1 / (1 + np.exp(-table[label, row, col])) / (1 + np.exp(-table[6, row, col]))
                    if share**0.5 >= 0.4 and box[2] > box[0] and box[3] > box[1]:
                        want.append((share**0.5, label, box))
    found = decode(answer, 2, spec, score=0.4)
    assert len(want) > 3
    for (score, label, box), s, k, b in zip(
        sorted(want, reverse=True), found.scores, found.labels, found.boxes, strict=True
    ):
        assert s == pytest.approx(score, abs=1e-5)
        assert k == label
        np.testing.assert_allclose(b, box, atol=1e-4)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_boxes_go_into_the_picture_and_back(fit: str) -> None:
    preprocess = Preprocess.model_validate({"size": (48, 80), "fit": fit})
    boxes = np.asarray([[300, 200, 420, 300]], np.float32)
    moved = to_picture(boxes, preprocess, 480, 640)
    np.testing.assert_allclose(to_frame(moved, preprocess, 480, 640), boxes, atol=1e-3)
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[200:300, 300:420] = 255
    rows, cols = np.nonzero(preprocess.picture(frame)[..., 0] > 127)
    np.testing.assert_allclose(moved[0], [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1], atol=1.0)


def _frame(*rows: tuple[int, int, int, int, int]) -> FrameBoxes:
    table = np.asarray(rows, np.float32).reshape(-1, 5)
    return FrameBoxes(table[:, :4], table[:, 4].astype(np.int64))


def _found(frame: FrameBoxes, *scores: float) -> Found:
    return Found(frame.boxes, np.asarray(scores, np.float32), frame.labels)


def test_average_precision_is_that_of_cases_done_by_hand() -> None:
    truth = [_frame((0, 0, 20, 20, 0), (40, 0, 60, 20, 1)), _frame((10, 10, 30, 30, 0))]
    perfect = box_precision(truth, [_found(truth[0], 0.9, 0.8), _found(truth[1], 0.7)], LABELS)
    assert [perfect.ap, perfect.ap50, perfect.boxes] == pytest.approx([1, 1, 3])
    # Overlap 2/3: a hit for four of the ten thresholds (0.50, 0.55, 0.60, 0.65).
    near = box_precision([_frame((0, 0, 20, 20, 0))], [_found(_frame((4, 0, 24, 20, 0)), 0.9)], LABELS)
    assert [near.ap, near.ap50, near.ap75] == pytest.approx([0.4, 1, 0])
    # One of two found, first a false alarm: precision 1/2 up to recall 1/2 (51 of 101 recall points), then nothing.
    half = box_precision(
        [_frame((0, 0, 20, 20, 0), (40, 0, 60, 20, 0))],
        [_found(_frame((0, 30, 20, 48, 0), (0, 0, 20, 20, 0)), 0.9, 0.5)], LABELS,
    )  # fmt: skip
    assert half.ap50 == pytest.approx(0.5 * 51 / 101)
    assert half.per_class == {"bright": pytest.approx(0.5 * 51 / 101)}
    none = box_precision(truth, [_found(_frame()), _found(_frame())], LABELS)
    assert (none.ap, none.boxes) == (0.0, 3)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(("change", "message"), [
    (lambda raw: raw.pop("categories"), "have no list 'categories'"),
    (lambda raw: raw.update(categories=[]), "'categories' is empty"),
    (lambda raw: raw.update(annotations=[]), "'annotations' is empty"),
    (lambda raw: raw["annotations"][3].update(bbox=[70, 4, 20, 16]), r"annotation 4: bbox .* lies outside its picture"),
    (lambda raw: raw["annotations"][0].update(bbox=[4, 4, 0, 16]), "annotation 1 has an empty bbox"),
    (lambda raw: raw["annotations"][0].update(bbox="wide"), "has no bbox of four numbers"),
    (lambda raw: raw["annotations"][0].update(image_id=999), "unknown image_id 999"),
    (lambda raw: raw["annotations"][0].update(category_id=9), "unknown category_id 9"),
    (lambda raw: raw["annotations"][0].pop("image_id"), "has no 'image_id'"),
    (lambda raw: raw["images"][0].update(video_id=7), "unknown video_id 7"),
    (lambda raw: raw["videos"][0].update(split="tset"), r"unknown split 'tset' \(did you mean 'test'\?\)"),
    (lambda raw: raw["videos"][0].update(width=-3), "has a bad size"),
    (lambda raw: raw["images"][1].update(width=2 * COLS), "image 2 of video 1 has another size than the video's"),
], ids=str)  # fmt: skip
def test_a_faulty_file_is_one_clear_line(change: Change, message: str, tmp_path: Path) -> None:
    path = write_boxes(tmp_path, frames=4)
    raw = json.loads(path.read_text())
    for image in raw["images"]:
        image.update(width=COLS, height=ROWS)
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message) as caught:
        read_coco(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_footage_of_another_size_or_length_is_said(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, frames=4)
    raw = json.loads(path.read_text())
    raw["videos"][0].update(width=2 * COLS)
    raw["images"][-1]["frame_index"] = 40
    path.write_text(json.dumps(raw))
    wide, long = read_coco(path).footage
    with pytest.raises(UserError, match=r"is 80x48 pixels, its annotations are for 160x48"):
        list(read_boxed(wide, PREPROCESS))
    with pytest.raises(UserError, match=r"has 4 frames, its annotations name frame 40"):
        list(read_boxed(long, PREPROCESS))
    for part, size in (("videos", {}), ("images", {"width": 2 * COLS, "height": ROWS})):
        for row in raw[part]:
            row.pop("width", None)
            row.pop("height", None)
            row.update(size)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"is 80x48 pixels, its annotations are for 160x48"):  # said by images alone
        list(read_boxed(read_coco(path).footage[0], PREPROCESS))
    with pytest.raises(UserError, match="do not exist"):
        read_coco(tmp_path / "other.json")
    path.write_text("{")
    with pytest.raises(UserError, match="are not readable JSON"):
        read_coco(path)


def test_a_box_is_held_against_its_videos_size_and_the_check_refuses_what_training_would(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, frames=4)
    assert "frames, 2 classes" in vidon("data", "check", path)[1]
    raw = json.loads(path.read_text())
    raw["annotations"][3].update(bbox=[70, 4, 20, 16])  # only the video says that it has 80 columns
    path.write_text(json.dumps(raw))
    said = refused("data", "check", path)
    assert "annotation 4: bbox [70, 4, 20, 16] lies outside its picture (80x48 pixels)" in said


def test_still_pictures_are_footage_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((ROWS, COLS, 3), 90, np.uint8))
    (tmp_path / "s.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": COLS, "height": ROWS}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [8, 8, 16, 16]}],
        "categories": [{"id": 5, "name": "dark"}],
    }))  # fmt: skip
    data = read_coco(tmp_path / "s.json", LABELS)
    (seen,) = read_boxed(data.split("auto")[0], PREPROCESS)
    assert seen.truth is not None
    assert (seen.truth.boxes.tolist(), seen.truth.labels.tolist()) == ([[8, 8, 24, 24]], [1])


class _Painter:
    """A session that knows the squares of ``tests.boxes`` by their brightness: a perfect detector."""

    def __init__(self) -> None:
        self.contract = CONTRACT
        self.resets = 0

    def step(self, frame_BCHW: np.ndarray) -> np.ndarray:
        boxes, labels = [], []
        for label, mask in enumerate((frame_BCHW[0].mean(0) > 0.5, frame_BCHW[0].mean(0) < -0.5)):
            rows, cols = np.nonzero(mask)
            if len(rows):
                boxes.append([float(v) for v in (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)])
                labels.append(label)
        return answer_for(boxes, labels, 2, SPEC)[None]

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None: ...

    def placement(self) -> Any:
        from toolkit.contract import Placement

        return Placement(runtime="double", device="cpu", precision="fp32")


def test_a_perfect_detector_scores_one_and_every_video_starts_anew(tmp_path: Path) -> None:
    data, session = read_coco(write_boxes(tmp_path, ("train", "val", "test"))), _Painter()
    result = evaluate_boxes(session, data, "all", PREPROCESS)
    assert result.precision.ap50 == pytest.approx(1.0)
    assert (result.precision.frames, session.resets) == (48, 3)
    slower = evaluate_boxes(session, data, "auto", Preprocess(size=(ROWS, COLS), fps=5.0))
    assert (slower.precision.frames, slower.unseen) == (8, 8)


def test_broken_footage_is_left_out_and_named(tmp_path: Path) -> None:
    path = write_boxes(tmp_path)
    (tmp_path / "val.avi").write_bytes(b"no video")
    result = evaluate_boxes(_Painter(), read_coco(path), "all", PREPROCESS)
    assert result.precision.frames == 16
    assert len(result.broken) == 1
    assert "val.avi" in result.broken[0]


def test_agreement_counts_boxes_both_ways() -> None:
    one = answer_for([[8, 8, 30, 30]], [0], 2, SPEC)
    two = answer_for([[8, 8, 30, 30], [50, 10, 70, 40]], [0, 1], 2, SPEC)
    assert agreement(one[None], one[None], CONTRACT) == 1.0
    assert agreement(one[None], two[None], CONTRACT) == pytest.approx(2 / 3)
    assert agreement(two[None], one[None], CONTRACT) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="it has no boxes"):
        found_in(one, Contract(frame=(3, ROWS, COLS), classes=2))


def test_the_camera_draws_boxes_and_writes_them_as_events(tmp_path: Path) -> None:
    from toolkit.bundle import Manifest

    write_boxes(tmp_path)
    manifest = Manifest(name="squares", task="detection", labels=LABELS, preprocess=PREPROCESS, contract=CONTRACT)
    bundle, events = Bundle(root=tmp_path, manifest=manifest), io.StringIO()
    summary = run_camera(str(tmp_path / "val.avi"), bundle, _Painter(),
                         [VideoSink(tmp_path / "out.avi"), EventSink(events)])  # fmt: skip
    assert summary.shares == {"bright": 1.0, "dark": 1.0}
    line = json.loads(events.getvalue().splitlines()[5])
    assert [row["label"] for row in line["boxes"]] == ["bright", "dark"]
    np.testing.assert_allclose(line["boxes"][0]["box"], [19, 6, 39, 22], atol=1.0)
    capture = cv2.VideoCapture(str(tmp_path / "out.avi"))
    picture = capture.read()[1]
    # The drawn frame of the dark square (left edge at 56 of 80 columns) has the second class's colour.
    zoom = picture.shape[1] / COLS
    edge = picture[round(34 * zoom), round(56 * zoom) + 1]
    assert edge.astype(int).max() > 150


def _lively(config: StudentConfig) -> StreamStudent:
    torch.manual_seed(0)
    model = build_student(config, 2, (3, ROWS, COLS), 4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def detector() -> StreamStudent:
    return _lively(StudentConfig(
        width=0.25, blocks=5, look_back=True, readout="boxes", boxes=BoxesConfig(channels=16, levels=2)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("footage"), ("train", "val", "test"))


@pytest.fixture(scope="module")
def exported(detector: StreamStudent, footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every runtime and precision, calibrated on the footage."""
    streams = [
        PREPROCESS.normalise(np.stack([seen.picture for seen in read_boxed(part, PREPROCESS)]))
        for part in read_coco(footage).footage
    ]
    return export_bundle(
        detector, path=tmp_path_factory.mktemp("b") / "d.vidon", name="d", labels=LABELS, preprocess=PREPROCESS,
        rollouts=streams[:1], golden_frames=streams[1], runtimes=RUNTIME_NAMES, precisions=PRECISIONS, lineage={},
    )  # fmt: skip


def test_every_exported_detector_answers_as_torch_does(detector: StreamStudent, exported: Bundle) -> None:
    assert exported.manifest.task == "detection"
    results = {result.key: result for result in verify(exported)}
    assert list(results) == list(KEYS)
    assert max(r.max_diff for key, r in results.items() if key.endswith("fp32")) < 1e-4
    assert min(r.decibels for key, r in results.items() if key.endswith("int8")) > 15
    # The step form in the file equals the clip form that was trained.
    golden = exported.golden()
    with torch.no_grad():
        clip = detector(torch.from_numpy(golden.frames)[None])[0].numpy()
    np.testing.assert_allclose(golden.logits, clip, atol=1e-4)
    session = open_session(exported, "litert-fp32")
    np.testing.assert_allclose(replay(session, golden.frames), clip, atol=2e-4 * max(1.0, float(np.abs(clip).max())))


def test_a_sweep_judges_a_detector_by_its_boxes(exported: Bundle) -> None:
    key = "onnxruntime-int8"
    (verified,) = verify(exported, [key])
    row = try_target(exported, key, Options())
    assert {name: row[name] for name in verified.metrics} == pytest.approx(verified.metrics)
    golden = exported.golden().logits
    assert compare(key, golden, golden + 40, exported.manifest.contract).agreement < 1  # boxes everywhere, same argmax


def test_the_command_line_measures_the_exported_file(exported: Bundle, footage: Path) -> None:
    data = ["--data", str(footage), "--split", "test"]
    keys = ("-a", "onnxruntime-fp32", "-a", "torch-fp32")
    code, text, _ = vidon("evaluate", exported.root, *data, *keys, "--json")
    rows = json.loads(text)
    session = open_session(exported, "openvino-fp32")
    want = evaluate_boxes(session, read_coco(footage), "test", PREPROCESS).precision
    assert code == 0
    for key in ("onnxruntime-fp32", "torch-fp32"):
        assert rows[key]["ap"] == pytest.approx(want.ap, abs=1e-6)
        assert rows[key]["frames"] == 16
    assert vidon("evaluate", exported.root, *data, *keys)[1].startswith("onnxruntime-fp32: AP 0.")
    assert "do not exist" in refused("evaluate", exported.root, "--data", footage.with_name("no.json"))
    for option in (("--format", "csv"), ("--videos", footage.parent), ("--fold", "2")):
        assert "a detector is evaluated on a COCO JSON" in refused("evaluate", exported.root, *data, *option)
    assert vidon("evaluate", exported.root, *data, *keys, "--format", "coco")[0] == 0


def test_the_road_from_a_coco_file_to_an_evaluated_bundle(footage: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "detect.toml"
    recipe.write_text(f"""
task = "detection"
[data]
root = "{footage}"
frames = 4
[preprocess]
size = [{ROWS}, {COLS}]
[student]
width = 0.25
blocks = 5
look_back = true
[detection]
epochs = 2
batch = 2
[quantize]
rollouts = 2
""")
    code, text, _ = vidon("distill", recipe, "--out", tmp_path / "s")
    assert (code, ": validation AP 0." in text) == (0, True)
    bundle = tmp_path / "b.vidon"
    names = ("--runtimes", "onnxruntime", "--precisions", "fp32,int8")
    code, text, errors = vidon("export", tmp_path / "s", recipe, "--out", bundle, *names)
    assert code == 0, errors
    rows = json.loads(vidon("evaluate", bundle, "--data", footage, "-a", "onnxruntime-int8", "--json")[1])
    assert rows["onnxruntime-int8"]["boxes"] == 32
    assert "its annotations are for" not in errors
    wrong = refused("finetune", recipe, "--out", tmp_path / "t", "--set", "data.root=nowhere.json")
    assert "boxes nowhere.json do not exist" in wrong
