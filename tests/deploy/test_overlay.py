"""The overlay draws on any picture and hides none of it below its chips."""

import cv2
import numpy as np
import pytest

from deploy.overlay import Overlay, Scene, colour_of


def _scene(probabilities: list[float] | None, **changes: object) -> Scene:
    values = None if probabilities is None else np.asarray(probabilities, np.float32)
    history = [] if values is None else [(int(values.argmax()), 0.9)] * 30
    known = {"probabilities": values, "history": history, "stages_ms": {"infer": 3.2}, "fps": 24.0, "stamp_s": 5.0}
    return Scene(**{**known, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(480, 640, 3), (48, 64, 3), (1080, 1920, 3), (333, 777, 3), (640, 360, 3), (90, 90)])
def test_any_picture_gets_a_panel_and_even_edges(shape: tuple[int, ...]) -> None:
    canvas = Overlay(["a", "b"]).draw(np.full(shape, 99, np.uint8), _scene([0.2, 0.8]))
    assert canvas.dtype == np.uint8
    assert canvas.shape[1] >= 640
    assert canvas.shape[0] % 2 == canvas.shape[1] % 2 == 0
    assert canvas.shape[0] / canvas.shape[1] > shape[0] / shape[1]


def test_the_frame_itself_is_not_touched_and_shows_in_full() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    before = frame.copy()
    canvas = Overlay(["a", "b"]).draw(frame, _scene([0.2, 0.8]))
    assert np.array_equal(frame, before)
    assert np.array_equal(canvas[80:480], frame[80:])


def test_a_likelier_class_has_a_longer_bar() -> None:
    overlay, frame = Overlay(["a", "b"]), np.zeros((480, 640, 3), np.uint8)

    def pixels(scene: Scene, index: int) -> int:
        panel = overlay.draw(frame, scene)[480:, :230]
        return int((panel == np.asarray(colour_of(index))).all(-1).sum())

    assert pixels(_scene([0.9, 0.1]), 0) > 3 * pixels(_scene([0.2, 0.8]), 0) > 0
    assert pixels(_scene([0.2, 0.8]), 1) > 3 * pixels(_scene([0.9, 0.1]), 1)


def test_the_history_strip_shows_past_classes() -> None:
    overlay, frame = Overlay(["a", "b"]), np.zeros((480, 640, 3), np.uint8)
    strip = overlay.draw(frame, _scene([1.0, 0.0], history=[(1, 0.9)] * 40))[480:, 240:470]
    assert (strip == np.asarray(colour_of(1))).all(-1).sum() > 200
    assert not (strip == np.asarray(colour_of(0))).all(-1).any()


@pytest.mark.parametrize(
    "labels", [["x"], [f"class number {i} with a very long name" for i in range(101)], ["übung", "走る"]]
)
def test_one_many_and_foreign_labels_are_drawn(labels: list[str]) -> None:
    share = [1 / len(labels)] * len(labels)
    drawn = Overlay(labels).draw(np.zeros((240, 320, 3), np.uint8), _scene(share))
    blank = Overlay(labels).draw(np.zeros((240, 320, 3), np.uint8), _scene(None))
    assert not np.array_equal(drawn, blank)


def test_before_the_first_answer_nothing_is_claimed() -> None:
    panel = Overlay(["a", "b"]).draw(np.zeros((480, 640, 3), np.uint8), _scene(None))[480:]
    for index in range(2):
        assert not (panel == np.asarray(colour_of(index))).all(-1).any()


def test_older_opencv_without_truetype_still_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    canvas = Overlay(["a", "übung"], "title").draw(np.zeros((480, 640, 3), np.uint8), _scene([0.1, 0.9], live=True))
    assert canvas[:80, :200].any()
