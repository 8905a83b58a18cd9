"""Figures can be read whatever people call their classes."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from train.tasks import classification
from train.tasks.classification import Classification
from train.tasks.figure import save_figure, shortened

LABELS = {
    "long": ("car passing (from above)", "a person who walks past the camera and waves", "asl v1.2", "bottle", "hand"),
    "other scripts": ("瓶子", "Fußgänger", "видео", "مرحبا"),
    "like formulas": ("costs $5", "$x_$", "$", "100% {a}", "a_b^c"),
    "many": tuple(f"class number {k}" for k in range(40)),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        kept.append(figure)
        return save_figure(figure, path)

    monkeypatch.setattr(classification, "save_figure", keep)
    return kept


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("many", [False, True])
def test_no_two_labels_of_a_figure_overlap(kind: str, many: bool, drawn: list[Figure], tmp_path: Path) -> None:
    size = len(LABELS[kind])
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((3 * size, size)).astype(np.float32)
    truth: Any = np.arange(3 * size) % size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (path,) = Classification(LABELS[kind], many).figures(tmp_path, outputs, np.eye(size)[truth] if many else truth)
    assert matplotlib.image.imread(path).shape[0] > 100
    axes = drawn[0].axes[0]
    for labels in [axes.get_yticklabels()] if many else [axes.get_xticklabels(), axes.get_yticklabels()]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # measuring draws again, with the fonts that are here
            boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) == size
        assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))


def test_a_long_label_is_cut_and_a_dollar_is_no_formula() -> None:
    assert shortened("a" * 100) == "a" * 27 + "\u2026"
    assert shortened("$5") == r"\$5"
    assert shortened("short") == "short"
