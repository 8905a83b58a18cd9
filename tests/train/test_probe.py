"""The probe is logistic regression, and installed it answers as fitted."""

import numpy as np
import pytest
import torch

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig
from train.compress.distill import clip_logits
from train.data.clips import normalise
from train.models.student import build_student
from train.probe import choose_strength, clip_means, fit_probe, install

PRE = Preprocess(size=(48, 64))


def _student(temporal: str = "none") -> object:
    torch.manual_seed(0)
    config = StudentConfig.model_validate(
        {"width": 0.25, "readout": "motion", "blocks": 6, "temporal": temporal, "dropout": 0.0}
    )
    return build_student(config, 3, (3, 48, 64), 12).eval()


def test_the_streaming_student_answers_as_the_probe_was_fitted() -> None:
    student = _student()
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (6, 12, 48, 64, 3), dtype=np.uint8)
    features = np.stack([clip_means(student, clip, PRE) for clip in clips])  # type: ignore[arg-type]
    probe = fit_probe(features, np.array([0, 1, 2, 0, 1, 2]), 3, 1.0)
    install(student, probe)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = clip_logits(student(normalise(clips, PRE)), student.contract().warmup)  # type: ignore[operator, attr-defined]
    np.testing.assert_allclose(logits.numpy(), probe(features), atol=1e-3)


def test_the_fit_is_the_minimum_of_the_balanced_objective() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    features = rng.standard_normal((60, 4, 5))
    labels = (features[:, 0, 0] + 0.5 * rng.standard_normal(60) > 0.4).astype(np.int64)
    ours = fit_probe(features, labels, 2, 0.3)(features)
    scaled = (features - features.mean(0)) / features.std(0) * np.sqrt(10 / 5)
    reference = linear_model.LogisticRegression(C=0.3, class_weight="balanced", max_iter=2000, tol=1e-10)
    theirs = reference.fit(scaled.reshape(60, -1), labels).decision_function(scaled.reshape(60, -1))
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], theirs, atol=2e-3)


def test_strength_is_chosen_without_the_group_that_judges() -> None:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((80, 2, 3))
    labels = rng.integers(0, 2, 80)  # nothing to learn: the strongest regularisation wins
    assert choose_strength(features, labels, [i % 4 for i in range(80)], 2) == 0.03


def test_features_of_single_frames_need_a_backbone_without_memory() -> None:
    with pytest.raises(UserError, match="temporal"):
        clip_means(_student("shift"), np.zeros((5, 48, 64, 3), np.uint8), PRE)  # type: ignore[arg-type]
