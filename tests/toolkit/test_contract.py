"""The stream contract checks what goes into a model."""

import numpy as np
import pytest

from toolkit.contract import Contract, StateSpec, chosen, clip_answer, probabilities, softmax
from toolkit.errors import UserError

CONTRACT = Contract(frame=(3, 4, 4), classes=2, states=(StateSpec(name="state_00", shape=(5, 2, 2)),))


def test_names_come_in_graph_order() -> None:
    assert CONTRACT.input_names == ["frame", "state_00"]
    assert CONTRACT.output_names == ["logits", "state_00_next"]


def test_state_starts_at_zero_with_static_shape() -> None:
    zeros = CONTRACT.zeros(batch=3)
    assert zeros["state_00"].shape == (3, 5, 2, 2)
    assert not zeros["state_00"].any()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((1, 3, 4, 5), np.float32), r"shape \(1, 3, 4, 5\), the model takes \(1, 3, 4, 4\)"),
        (np.zeros((3, 4, 4), np.float32), "shape"),
        (np.zeros((1, 3, 4, 4), np.uint8), "dtype uint8"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 4, 4), np.inf, np.float32), "infinite"),
    ],
)
def test_a_wrong_frame_is_one_clear_line(frame: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CONTRACT.check_input(frame)


def test_a_clip_model_has_no_state() -> None:
    with pytest.raises(ValueError, match="no stream state"):
        Contract(kind="clip", frame=(3, 4, 4), classes=2, states=CONTRACT.states)


def test_the_clip_answer_is_the_softmax_of_the_mean_logits() -> None:
    logits = np.array([[0.0, 2.0], [4.0, 0.0]], np.float32)
    np.testing.assert_allclose(clip_answer(logits), softmax(np.array([2.0, 1.0], np.float32)))
    assert clip_answer(logits).sum() == pytest.approx(1.0)


def test_warm_up_frames_do_not_count_unless_there_are_no_others() -> None:
    logits = np.array([[9.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(clip_answer(logits, warmup=1), softmax(logits[1]))
    np.testing.assert_array_equal(clip_answer(logits, warmup=5), softmax(logits[1]))


def test_with_many_labels_each_is_a_question_of_its_own() -> None:
    logits = np.array([[0.0, 2.0, -300.0], [4.0, 0.0, -300.0]], np.float32)
    answer = clip_answer(logits, answer="many")
    np.testing.assert_allclose(answer, [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-1.0)), 0.0], rtol=1e-6)
    assert chosen(answer, "many") == (0, 1)
    assert chosen(probabilities(np.array([-1.0, -2.0], np.float32), "many"), "many") == ()
    assert chosen(softmax(np.array([-1.0, -2.0], np.float32))) == (0,)


def test_a_contract_written_before_there_were_many_labels_is_read_as_one_label() -> None:
    raw = CONTRACT.model_dump(mode="json")
    del raw["answer"]
    assert Contract.model_validate(raw) == CONTRACT
    assert CONTRACT.answer == "one"
