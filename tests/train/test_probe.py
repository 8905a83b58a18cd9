"""The probe is logistic regression, and installed it answers as fitted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.synthetic import tiny_recipe, write_video
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig
from train.compress.distill import clip_logits
from train.data.clips import normalise
from train.data.index import index_clips
from train.data.shard import write_shards
from train.models.student import build_student
from train.probe import choose_strength, clip_means, fit_probe, install
from train.stages import probe

PRE = Preprocess(size=(48, 64))
STUDENT: dict[str, object] = {
    "width": 1.0, "temporal": "none", "readout": "motion", "look_back": False, "pretrained": "imagenet", "blocks": 4,
    "depth": 1.0,
}  # fmt: skip


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
    fitted = fit_probe(features, np.array([0, 1, 2, 0, 1, 2]), 3, 1.0)
    install(student, fitted)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = clip_logits(student(normalise(clips, PRE)), student.contract().warmup)  # type: ignore[operator, attr-defined]
    np.testing.assert_allclose(logits.numpy(), fitted(features), atol=1e-3)


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


def test_the_probe_stage_tells_directions_apart_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, count in (("train", 6), ("val", 3)):
        for label, step in (("slow", 1), ("fast", 5)):
            for index in range(count):
                write_video(data / split / label / f"{split}-{label}-{index}.avi", step, index + count, frames=12)
    recipe = tiny_recipe(data, student=STUDENT, data={"flips": {}})
    done = json.loads((probe(recipe, tmp_path / "out") / "done.json").read_text())
    assert done["validation"] == 1.0
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()}
    assert len(kept) == 12
    (tmp_path / "out" / "done.json").unlink()
    probe(recipe, tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()} == kept


def test_a_probe_of_another_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='readout = "motion"'):
        probe(tiny_recipe(tmp_path), tmp_path / "out")


def test_a_part_of_a_video_is_a_clip_of_its_own(tmp_path: Path) -> None:
    rows = ["path,label,split,start,end"]
    for index in range(3):
        write_video(tmp_path / f"{index}.avi", 3, index, frames=24)
        rows += [f"{index}.avi,a,train,0,1.2", f"{index}.avi,b,train,1.2,2.4"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    recipe = tiny_recipe(tmp_path / "list.csv", student=STUDENT, data={"flips": {}})
    probe(recipe, tmp_path / "out")
    assert len(list((tmp_path / "out" / "features").iterdir())) == 6
    (tmp_path / "list.csv").write_text("\n".join(rows).replace(",b,", ",a;b,"))
    with pytest.raises(UserError, match="a probe tells one label a clip"):
        probe(recipe, tmp_path / "out")


def test_clips_in_shards_are_probed_as_files_are(tmp_path: Path) -> None:
    for label, step in (("slow", 1), ("fast", 5)):
        for index in range(4):
            write_video(tmp_path / "data" / "train" / label / f"{index}.avi", step, index, frames=12)
    write_shards(index_clips(tmp_path / "data"), tmp_path / "shards", 10**6)
    folders = [probe(tiny_recipe(tmp_path / name, student=STUDENT, data={"flips": {}}), tmp_path / f"out-{name}")
               for name in ("data", "shards")]  # fmt: skip
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor)
