"""Many labels a clip on the device: exported, evaluated as after training, and shown by the camera."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle_report import report_of
from deploy.camera import CameraOptions, run_camera
from deploy.evaluate_many import ManyEvaluation, evaluate_many
from deploy.overlay import Overlay, Scene
from deploy.sinks import EventSink
from deploy.verify import compare
from tests.deploy.cameras import SIZE, BrightnessSession, make_bundle, write_video
from tests.train.synthetic import tiny_recipe, write_data
from toolkit.cli.road import evaluate_bundle, export_model
from toolkit.contract import Array, Contract
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from train.data.index import index_clips
from train.stages import distill
from train.tasks.classification import Classification

LABELS = ("dark", "light")


class _Lamp(BrightnessSession):
    """Names nothing in the dark and both labels in the light."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = Contract(frame=(3, *SIZE), classes=2, answer="many")

    def step(self, frame_BCHW: Array) -> Array:
        super().step(frame_BCHW)
        return np.asarray([[-3.0, -2.0]] if frame_BCHW.mean() < 0 else [[1.0, 2.0]], np.float32)


def test_events_and_shares_tell_every_label_above_one_half(tmp_path: Path) -> None:
    stream, source = io.StringIO(), str(write_video(tmp_path / "v.avi"))
    summary = run_camera(source, make_bundle(), _Lamp(), [EventSink(stream)], CameraOptions(window=1))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["labels"] for event in events] == [[]] * 10 + [["bright", "dark"]] * 10
    assert events[-1]["probabilities"]["dark"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-4)
    assert summary.shares == {"dark": 0.5, "bright": 0.5}
    stream = io.StringIO()
    run_camera(source, make_bundle(), _Lamp(), [EventSink(stream, changes=True)], CameraOptions(window=1))
    assert len(stream.getvalue().splitlines()) == 2


def test_the_overlay_names_all_labels_that_are_there_or_nothing() -> None:
    overlay, frame = Overlay(["a", "b", "c"], answer="many"), np.zeros((480, 640, 3), np.uint8)
    written: list[str] = []
    put = overlay._type.put

    def spy(canvas: object, text: str, *rest: object, **more: object) -> None:
        written.append(text)
        put(canvas, text, *rest, **more)  # type: ignore[arg-type]

    overlay._type.put = spy  # type: ignore[method-assign]
    scene = Scene(np.asarray([0.6, 0.9, 0.2], np.float32), [(1, 0.9)], {}, 24.0, 1.0)
    overlay.draw(frame, scene)
    assert "b, a" in written
    overlay.draw(frame, Scene(np.asarray([0.1, 0.2, 0.3], np.float32), [(2, 0.3)], {}, 24.0, 1.0))
    assert "nothing" in written


def test_many_labels_are_judged_each_for_itself(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.avi")  # ten dark steps, ten light ones: the mean logits are -1 and 0
    items = [(video, ("dark",)), (video, ()), (tmp_path / "broken.mp4", ())]
    (tmp_path / "broken.mp4").write_bytes(b"")
    found = evaluate_many(_Lamp(), items, LABELS, Preprocess(size=SIZE, fps=10.0))
    assert found.logits.tolist() == pytest.approx(np.asarray([[-1.0, 0.0]] * 2))
    assert found.truth.tolist() == [[True, False], [False, False]]
    assert (found.accuracy, found.figures["map"], len(found.broken)) == (0.5, 0.5, 1)
    assert found.agreement(found) == 1.0
    assert found.frame_answers[0] == ((),) * 10 + ((0, 1),) * 10
    assert json.loads(json.dumps(found.as_dict()))["truth"] == [[0], []]
    with pytest.raises(UserError, match="label 'red'"):
        evaluate_many(_Lamp(), [(video, ("dark", "red"))], LABELS, Preprocess(size=SIZE))


def test_agreement_counts_labels_that_are_named_alike() -> None:
    want = np.asarray([[1.0, -1.0], [1.0, 1.0]], np.float32)
    got = np.asarray([[1.0, 0.5], [1.0, 1.0]], np.float32)
    assert compare("x", got, want, _Lamp().contract).agreement == 0.75
    assert compare("x", got, want).agreement == 1.0


def test_a_student_of_many_labels_is_exported_and_evaluated_as_such(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=4, val=2)
    lines = ["path,label,split"]
    for index, clip in enumerate(index_clips(tmp_path / "data").clips):
        lines.append(f"{clip.path},{clip.label}{';even' if index % 2 == 0 else ''},{clip.split}")
    (tmp_path / "many.csv").write_text("\n".join(lines))
    recipe = tiny_recipe(tmp_path / "many.csv", distill={"epochs": 1})
    bundle = export_model(recipe, distill(recipe, tmp_path / "s", None), tmp_path / "b.vidon",
                          ["torch", "onnxruntime"])  # fmt: skip
    assert bundle.manifest.contract.answer == "many"
    assert report_of(bundle).task == "classification, many labels a clip"
    results = evaluate_bundle(bundle, tmp_path / "many.csv", "val", ["torch-fp32", "onnxruntime-fp32"])
    torch, found = results.values()
    assert isinstance(torch, ManyEvaluation)
    assert isinstance(found, ManyEvaluation)
    np.testing.assert_allclose(found.logits, torch.logits, atol=1e-4)
    assert found.labels == ("even", "left", "right")
    assert "every label right" in found.summary
    trained = Classification(found.labels, multi_label=True).metrics(found.logits, found.truth.astype(np.float32))
    assert found.figures == trained
    assert found.truth.sum() == 6  # four clips, every other one of two labels
