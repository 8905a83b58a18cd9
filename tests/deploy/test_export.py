"""What enters a bundle has been checked; clip models are exported too and run behind a sliding window."""

from pathlib import Path

import numpy as np
import pytest
import torch

import deploy.export as export_module
from deploy.export import export_bundle, golden_of, targets_of
from deploy.export.step import feeds_of, flat_step
from deploy.runtimes import open_session
from deploy.verify import compare, replay, verify
from tests.deploy.conftest import KEYS, SIDE, lively_student, streams
from toolkit.bundle import Bundle, open_bundle, seal
from toolkit.errors import ParityError, UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig, TeacherConfig
from train.models.student import StreamStudent
from train.models.vit import TubeletViT


def test_every_runtime_and_precision_is_in_the_bundle(bundle: Bundle) -> None:
    assert tuple(artefact.key for artefact in bundle.manifest.artefacts) == KEYS
    assert all(artefact.metrics["size_bytes"] > 0 for artefact in bundle.manifest.artefacts)


def test_int8_files_are_smaller(bundle: Bundle) -> None:
    size = {artefact.key: artefact.metrics["size_bytes"] for artefact in bundle.manifest.artefacts}
    assert size["litert-int8"] < 0.7 * size["litert-fp32"]


def test_the_whole_bundle_verifies(bundle: Bundle) -> None:
    assert [result.key for result in verify(bundle)] == list(KEYS)


def test_a_wrong_golden_answer_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.vidon"
    shutil.copytree(bundle.root, copy)
    golden = bundle.golden()
    np.savez(copy / "golden.npz", frames=golden.frames, logits=golden.logits[:, ::-1])
    seal(copy, bundle.manifest)
    with pytest.raises(ParityError, match="torch-fp32: differs from the float model by"):
        verify(open_bundle(copy))


def test_a_file_that_answers_wrongly_never_enters_a_bundle(student: StreamStudent, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    other = lively_student(StudentConfig(width=0.25, depth=0.5, look_back=True))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    monkeypatch.setattr(export_module, "golden_of", lambda _, frames: golden_of(other, frames))
    with pytest.raises(ParityError, match="onnxruntime-fp32"):
        export_bundle(
            student, path=tmp_path / "bad.vidon", name="bad", labels=("a", "b", "c", "d"),
            preprocess=Preprocess(size=(SIDE, SIDE)), rollouts=streams(1), golden_frames=streams(1)[0],
            runtimes=("onnxruntime",), precisions=("fp32",), lineage={},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_folding_batch_norms_changes_no_answer(student: StreamStudent) -> None:
    frames = streams(1)[0]
    with torch.no_grad():
        clip = student(torch.from_numpy(frames)[None])[0].numpy()
    assert compare("folded", golden_of(student, frames).logits, clip).max_diff < 1e-5


def test_calibration_sees_the_states_as_they_occur(student: StreamStudent) -> None:
    feeds = feeds_of(flat_step(student), student.contract(), streams(2, 5))
    assert len(feeds) == 10
    name = student.contract().states[-1].name
    assert not feeds[0][name].any()
    assert not feeds[5][name].any()
    assert feeds[4][name].any()


@pytest.mark.parametrize("config", [
    StudentConfig(width=0.25, depth=0.4, temporal="conv", activation="hardswish"),
    StudentConfig(width=0.25, depth=0.4, temporal="none", readout="motion", blocks=6),
], ids=["conv-hardswish", "motion"])  # fmt: skip
def test_other_students_export_too(config: StudentConfig, tmp_path: Path) -> None:
    model = lively_student(config)
    made = export_bundle(
        model, path=tmp_path / "b.vidon", name="b", labels=("a", "b", "c", "d"),
        preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=streams(4), golden_frames=streams(5)[4], runtimes=("onnxruntime", "openvino", "litert"),
        precisions=("fp32",), lineage={},
    )  # fmt: skip
    assert max(result.max_diff for result in verify(made)) < 1e-4


def test_a_clip_model_runs_behind_a_sliding_window(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TeacherConfig(dim=32, depth=2, heads=2, tubelet=(2, 8, 8))
    teacher = TubeletViT(config, 3, (3, SIDE, SIDE), 4).eval()
    torch.nn.init.normal_(teacher.head.weight, std=0.5)
    frames = streams(1, 9)[0]
    made = export_bundle(
        teacher, path=tmp_path / "t.vidon", name="t", labels=("a", "b", "c"), preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=[], golden_frames=frames, runtimes=("onnxruntime", "openvino"), precisions=("fp32",), lineage={},
    )  # fmt: skip
    session = open_session(made, "onnxruntime-fp32")
    got = replay(session, frames)
    with torch.no_grad():
        want = teacher(torch.from_numpy(frames[-4:]).transpose(0, 1)[None]).numpy()
    np.testing.assert_allclose(got[-1:], want, atol=1e-4)


def test_nothing_to_export_is_said() -> None:
    with pytest.raises(UserError, match="nothing to export"):
        targets_of(("torch",), ("int8",))
    with pytest.raises(UserError, match="unknown runtime"):
        targets_of(("tensorflow",), ("fp32",))
