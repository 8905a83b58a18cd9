"""Figures of an artefact: accuracy with its interval, paired comparison, interleaved latency."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench import bench, bench_calls
from deploy.evaluate import Evaluation, evaluate, mcnemar, wilson
from tests.deploy.cameras import BrightnessSession
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess

LABELS = ("dark", "bright")


def _video(path: Path, level: int, frames: int = 12) -> Path:
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    for _ in range(frames):
        writer.write(np.full((24, 32, 3), level, np.uint8))
    writer.release()
    return path


def test_accuracy_counts_right_clips(tmp_path: Path) -> None:
    items = [(_video(tmp_path / f"{i}.avi", level), label)
             for i, (level, label) in enumerate([(20, "dark"), (230, "bright"), (240, "dark")])]  # fmt: skip
    result = evaluate(BrightnessSession(), items, LABELS, Preprocess(size=(24, 32)))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.confusion() == [[1, 1], [0, 1]]
    assert result.as_dict()["per_class"]["dark"]["recall"] == 0.5
    assert [len(frames) for frames in result.frame_answers] == [12, 12, 12]
    assert result.agreement(result) == 1.0


def test_agreement_leaves_out_the_warm_up() -> None:
    def answers(*frames: tuple[int, ...]) -> Evaluation:
        table = np.zeros((len(frames), 2), np.float32)
        truth = (0,) * len(frames)
        return Evaluation(LABELS, ("",) * len(frames), truth, truth, table, frames, warmup=2)

    assert answers((0, 0, 1, 1)).agreement(answers((1, 1, 1, 1))) == 1.0
    assert answers((0, 0, 1, 1)).agreement(answers((0, 0, 1, 0))) == 0.5
    assert answers((0,)).agreement(answers((1,))) == 0.0


def test_a_broken_video_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    items = [(_video(tmp_path / "a.avi", 20), "dark"), (tmp_path / "broken.mp4", "dark")]
    result = evaluate(BrightnessSession(), items, LABELS, Preprocess(size=(24, 32)))
    assert len(result.truth) == 1
    assert "broken.mp4 cannot be read" in result.broken[0]


def test_only_broken_videos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 videos can be read"):
        evaluate(BrightnessSession(), [(tmp_path / "broken.mp4", "dark")], LABELS, Preprocess(size=(24, 32)))


def test_a_label_the_model_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 'red'"):
        evaluate(BrightnessSession(), [(tmp_path / "x.avi", "red")], LABELS, Preprocess(size=(24, 32)))


def test_the_wilson_interval_is_the_published_one() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I, case (b)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@given(total=st.integers(1, 300), data=st.data())
def test_the_interval_holds_the_share(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total)
    assert -1e-9 <= low <= correct / total <= high <= 1 + 1e-9


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a = [True] * 9 + [False] * 1 + [True] * 20
    b = [False] * 9 + [True] * 1 + [True] * 20
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(a, a) == 1.0


def test_latencies_are_taken_in_turns() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = bench_calls(calls, steps=6, warmup=0, block=2)
    assert "".join(order) == "aaabbb" * 3
    assert [len(found[name].samples_ms) for name in "ab"] == [6, 6]


def test_a_slower_session_is_measured_as_slower() -> None:
    found = bench({"slow": BrightnessSession(delay_s=0.01), "fast": BrightnessSession()}, steps=10, warmup=1)
    assert found["slow"].p50_ms > found["fast"].p50_ms
    assert found["slow"].p50_ms >= 10
    assert found["slow"].p50_ms <= found["slow"].p95_ms <= found["slow"].p99_ms
    assert "samples_ms" not in found["slow"].as_dict()
