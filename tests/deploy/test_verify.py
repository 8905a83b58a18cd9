"""What counts as the same answer: the limits of the parity check, taken at their edges."""

import math

import numpy as np
import pytest

from deploy.verify import FLOAT_TOLERANCE, INT8_AGREEMENT, INT8_DECIBELS, VerifyResult, compare, objection
from toolkit.bundle import Artefact, Precision
from toolkit.contract import Contract


def _verdict(precision: Precision, **changes: float) -> str | None:
    good = {"max_diff": 0.0, "decibels": 60.0, "agreement": 1.0}
    return objection(Artefact(runtime="r", precision=precision, entry="m"), VerifyResult("r", 4, **{**good, **changes}))


def test_float_files_must_give_the_float_models_numbers() -> None:
    assert _verdict("fp32", max_diff=FLOAT_TOLERANCE, decibels=0, agreement=0) is None
    assert "differs from the float model by 1.1e-04" in str(_verdict("fp32", max_diff=1.1 * FLOAT_TOLERANCE))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_files_of_fewer_bits_must_give_its_answers(precision: Precision) -> None:
    """fp16 too: vidon makes none, but a bundle may hold one."""
    assert _verdict(precision, max_diff=1.0, decibels=INT8_DECIBELS, agreement=INT8_AGREEMENT) is None
    for changes in ({"decibels": INT8_DECIBELS - 0.1}, {"agreement": INT8_AGREEMENT - 0.01}):
        assert f"{precision} differs too much" in str(_verdict(precision, **changes))


def test_the_figures_are_those_of_their_formulas() -> None:
    want = np.asarray([[3.0, 1.0, -4.0], [0.5, 0.25, 0.0]], np.float32)
    got = want + np.asarray([[0.0, 0.4, 0.0], [-0.3, 0.0, 0.0]], np.float32)
    result = compare("k", got, want)
    assert result.max_diff == pytest.approx(0.4 / 4.0)  # over the largest logit
    tenth = np.float32(0.1)
    assert compare("k", got * tenth, want * tenth).max_diff == pytest.approx(0.04)  # but over 1 at least
    assert result.decibels == pytest.approx(10 * math.log10(np.square(want).sum() / 0.25), abs=1e-3)
    assert (result.agreement, result.steps) == (0.5, 2)


def test_of_many_labels_each_counts_for_itself() -> None:
    want = np.asarray([[3.0, 1.0, -4.0], [0.5, 0.25, -0.1]], np.float32)
    got = np.asarray([[1.0, 3.0, -4.0], [0.5, 0.25, 0.1]], np.float32)
    many = Contract(frame=(3, 8, 8), classes=3, answer="many")
    assert compare("k", got, want, many).agreement == pytest.approx(5 / 6)
    assert compare("k", got, want).agreement == 0.5
