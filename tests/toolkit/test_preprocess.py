"""One preprocessing for training and every device."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.preprocess import FrameSampler, Preprocess


def _frame(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 90), cols=st.integers(1, 90), height=st.integers(1, 48), width=st.integers(1, 48))
def test_any_frame_size_becomes_the_models_size(rows: int, cols: int, height: int, width: int) -> None:
    picture = Preprocess(size=(height, width)).picture(_frame(rows, cols))
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_a_frame_of_the_right_size_only_changes_its_channel_order() -> None:
    frame = _frame(24, 32)
    assert np.array_equal(Preprocess(size=(24, 32)).picture(frame), frame[:, :, ::-1])


def test_a_wide_frame_is_cropped_in_the_centre_then_scaled() -> None:
    frame = _frame(40, 100)
    expected = cv2.resize(frame[:, 30:70], (20, 20), interpolation=cv2.INTER_AREA)[:, :, ::-1]
    assert np.array_equal(Preprocess(size=(20, 20)).picture(frame), expected)


def test_a_grey_frame_becomes_three_equal_channels() -> None:
    picture = Preprocess(size=(8, 8)).picture(_frame(8, 8)[:, :, 0])
    assert np.array_equal(picture[..., 0], picture[..., 2])


def test_normalisation_is_the_formula() -> None:
    preprocess = Preprocess(size=(6, 5), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    picture = _frame(6, 5)
    want = (picture / 255.0 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    got = preprocess.normalise(picture)
    assert got.shape == (3, 6, 5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)


def test_normalising_a_clip_equals_normalising_its_frames() -> None:
    preprocess = Preprocess(size=(6, 5))
    clip = np.stack([_frame(6, 5, seed) for seed in range(4)])
    assert np.array_equal(preprocess.normalise(clip), np.stack([preprocess.normalise(f) for f in clip]))


@settings(max_examples=60, deadline=None)
@given(source=st.floats(3, 120), fps=st.floats(1, 60), seconds=st.floats(0.5, 4))
def test_the_sampler_steps_at_the_models_rate_whatever_the_source(source: float, fps: float, seconds: float) -> None:
    sampler = FrameSampler(fps)
    count = int(seconds * source) + 1
    steps = sum(sampler.due(index / source) for index in range(count))
    last_s = (count - 1) / source
    assert abs(steps - (np.floor(last_s * fps) + 1)) <= 1


def test_the_sampler_never_answers_before_the_frame_exists() -> None:
    sampler = FrameSampler(10)
    assert sampler.due(5.0) == 1
    assert sampler.due(5.05) == 0
    assert sampler.due(5.1) == 1


def test_a_stalled_live_source_does_not_flood_the_model() -> None:
    assert FrameSampler(10).due(0.0) == 1
    sampler = FrameSampler(10, limit=1)
    sampler.due(0.0)
    assert sampler.due(60.0) == 1
    assert sampler.due(60.05) == 0


def test_preprocessing_refuses_unknown_fields() -> None:
    with pytest.raises(ValueError, match="colour"):
        Preprocess.model_validate({"colour": "bgr"})


def test_a_stretched_frame_keeps_all_of_the_picture() -> None:
    frame = _frame(40, 100)
    expected = cv2.resize(frame, (20, 20), interpolation=cv2.INTER_AREA)[:, :, ::-1]
    assert np.array_equal(Preprocess(size=(20, 20), fit="stretch").picture(frame), expected)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (41, 20), (20, 43)])
def test_the_crop_is_the_middle_whichever_side_is_longer(size: tuple[int, int]) -> None:
    rows, cols = np.mgrid[: size[0], : size[1]]
    frame = np.stack([rows, cols, rows], -1).astype(np.uint8)  # each pixel tells where it was
    picture = Preprocess(size=(20, 20)).picture(frame).astype(int)
    top, left = (size[0] - 20) // 2, (size[1] - 20) // 2
    assert (picture[0, 0].tolist(), picture[-1, -1].tolist()) == ([top, left, top], [top + 19, left + 19, top + 19])
