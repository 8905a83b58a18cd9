"""What enters a bundle has been checked; clip models are exported too and run behind a sliding window."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import deploy.export as export_module
from deploy.chatter import hushed
from deploy.export import export_bundle, golden_of, targets_of
from deploy.export.onnx import float_onnx
from deploy.export.step import feeds_of, flat_step, sample_inputs
from deploy.runtimes import open_session
from deploy.verify import compare, replay, verify
from tests.deploy import clips
from tests.deploy.clips import clip_streams, convolutions
from tests.deploy.conftest import KEYS, SIDE, lively_student, streams
from toolkit.bundle import Bundle, open_bundle, seal
from toolkit.errors import ParityError, UserError
from toolkit.files import sha256
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


ALL = ("torch", "onnxruntime", "openvino", "litert")


def export_clip(model: torch.nn.Module, path: Path, runtimes: tuple[str, ...], precisions: tuple[str, ...]) -> Bundle:
    flows = [flow.numpy() for flow in clip_streams(6)]
    return export_bundle(
        model, path=path, name="c", labels=("a", "b", "c"), preprocess=Preprocess(size=(clips.SIDE, clips.SIDE)),
        rollouts=flows, golden_frames=np.concatenate(flows[:3]), runtimes=runtimes, precisions=precisions, lineage={},
    )  # fmt: skip


def test_a_3d_convolutional_clip_model_exports_everywhere_in_both_precisions(tmp_path: Path) -> None:
    made = export_clip(convolutions(), tmp_path / "c.vidon", ALL, ("fp32", "int8"))
    assert tuple(artefact.key for artefact in made.manifest.artefacts) == KEYS
    for result in verify(made):
        assert result.max_diff < 1e-4 if result.key.endswith("fp32") else result.decibels > 20, result.summary


def test_a_batch_of_windows_equals_single_windows(tmp_path: Path) -> None:
    made = export_clip(convolutions(), tmp_path / "c.vidon", ALL, ("fp32",))
    flows = [flow.numpy() for flow in clip_streams(2)]
    for key in (artefact.key for artefact in made.manifest.artefacts):
        many, one = open_session(made, key, threads=1, batch=2), open_session(made, key, threads=1)
        got = np.stack([many.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
        for index, flow in enumerate(flows):
            np.testing.assert_allclose(got[:, index], replay(one, flow), atol=1e-5)


@pytest.mark.parametrize(("model", "target", "line"), [
    (convolutions(torch.nn.MaxPool3d(2)), "int8", r"max_pool3d \(layer net\.3\): the quantiser .* use fp32 there"),
    (convolutions(torch.nn.AvgPool3d(2)), "int8", r"avg_pool3d \(layer net\.3\)"),
    (convolutions(torch.nn.AdaptiveAvgPool3d(2)), "int8", r"adaptive_avg_pool3d \(layer net\.3\)"),
    (convolutions(groups=8), "fp32", r"conv3d \(layer net\.3\): LiteRT's CONV_3D has no groups"),
], ids=["max", "average", "adaptive", "groups"])  # fmt: skip
def test_what_litert_cannot_take_is_named_before_conversion_starts(
    model: torch.nn.Module, target: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module._Maker, "make", None)  # a conversion would fail in another way
    with pytest.raises(UserError, match=f"litert-{target} cannot take {line}"):
        export_clip(model, tmp_path / "c.vidon", ("litert",), (target,))
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_made_is_left_out_and_the_bundle_says_so(tmp_path: Path) -> None:
    model = convolutions(torch.nn.MaxPool3d(2))
    made = export_clip(model, tmp_path / "c.vidon", ("onnxruntime", "litert"), ("fp32", "int8"))
    keys = [artefact.key for artefact in made.manifest.artefacts]
    assert keys == ["onnxruntime-fp32", "onnxruntime-int8", "litert-fp32"]
    assert "max_pool3d" in made.manifest.lineage["left_out"]["litert-int8"]


def test_int8_without_calibration_streams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int8 needs calibration streams"):
        export_bundle(
            convolutions(), path=tmp_path / "c.vidon", name="c", labels=("a", "b", "c"), preprocess=Preprocess(),
            rollouts=[], golden_frames=clip_streams(1)[0].numpy(), runtimes=("openvino",), precisions=("int8",),
            lineage={},
        )  # fmt: skip


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_an_onnx_file_has_the_opset_asked_for(student: StreamStudent, opset: int, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    step, contract = flat_step(student), student.contract()
    with hushed():
        float_onnx(step, contract, tmp_path / "m.onnx", opset=opset)
    model = onnx.load(str(tmp_path / "m.onnx"))
    assert model.opset_import[0].version == opset
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert shapes == [[1, *contract.frame], *([1, *state.shape] for state in contract.states)]
    feed = feeds_of(step, contract, streams(1, 3))[2]
    got = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["logits"], feed)[0]
    want = step(*(torch.from_numpy(feed[name]) for name in contract.input_names))[0]
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="choose 17 to 23"):
        float_onnx(step, contract, tmp_path / "m.onnx", opset=9)


def test_large_weights_go_to_one_file_named_after_the_model(student: StreamStudent, tmp_path: Path) -> None:
    import onnxruntime

    for _ in range(2):  # the second writing must not add to the first
        with hushed():
            float_onnx(flat_step(student), student.contract(), tmp_path / "m.onnx", external=True)
        sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
        assert set(sizes) == {"m.onnx", "m.onnx.data"}
        weights = 4 * sum(parameter.numel() for parameter in student.parameters())
        assert 0.5 * weights < sizes["m.onnx.data"] < 1.2 * weights
    feed = {name: value.numpy() for name, value in zip(
        student.contract().input_names, sample_inputs(student.contract()), strict=True
    )}  # fmt: skip
    assert onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["logits"], feed)[0].shape == (1, 4)


@pytest.mark.slow
def test_every_file_of_the_same_model_has_the_same_bytes(student: StreamStudent, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        maker = export_module._Maker(student, student.contract(), streams(2, 4), tmp_path / name)
        with hushed():
            for key in KEYS:
                runtime, precision = key.split("-")
                maker.make(runtime, precision)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        digests.append({str(file.relative_to(tmp_path / name)): sha256(file) for file in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 9  # OpenVINO has two files each


def test_the_float_files_of_the_same_model_have_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        maker = export_module._Maker(convolutions(), convolutions().contract(), [], tmp_path / name)
        with hushed():
            files = [maker.make(runtime, "fp32") for runtime in ("torch", "onnxruntime", "openvino")]
        digests.append([sha256(file) for file in files])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_litert_gets_a_file_of_its_own_for_a_batch(precision: str, tmp_path: Path) -> None:
    student = lively_student(StudentConfig(width=0.25, depth=0.4, look_back=True, blocks=4))
    made = export_bundle(
        student, path=tmp_path / "b.vidon", name="b", labels=("a", "b", "c", "d"),
        preprocess=Preprocess(size=(SIDE, SIDE)), rollouts=streams(4), golden_frames=streams(5)[4],
        runtimes=("litert",), precisions=(precision,), lineage={}, batches=(3,),
    )  # fmt: skip
    flows, key = streams(3), f"litert-{precision}"
    many, one = open_session(made, key, threads=1, batch=3), open_session(made, key, threads=1)
    assert many.placement().detail["file"] == "model-b3.tflite"
    assert one.placement().detail["file"] == "model.tflite"
    got = np.stack([many.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
    for index, flow in enumerate(flows):
        result = compare(key, got[:, index], replay(one, flow))
        assert result.max_diff < 1e-5 if precision == "fp32" else result.decibels > 25, result.summary


def test_nothing_to_export_is_said() -> None:
    with pytest.raises(UserError, match="nothing to export"):
        targets_of(("torch",), ("int8",))
    with pytest.raises(UserError, match="unknown runtime"):
        targets_of(("tensorflow",), ("fp32",))
    with pytest.raises(UserError, match=r"unknown precision 'int4' \(did you mean 'int8'\?\); precisions: fp32, int8"):
        targets_of(("litert",), ("fp32", "int4"))


def test_a_full_disk_is_told_before_a_converter_dies_of_it(
    student: StreamStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(runtimes: tuple[str, ...]) -> object:
        return export_bundle(
            student, path=tmp_path / "b.vidon", name="b", labels=("a", "b", "c", "d"),
            preprocess=Preprocess(size=(SIDE, SIDE)), rollouts=streams(1), golden_frames=streams(1)[0],
            runtimes=runtimes, precisions=("fp32",), lineage={},
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        with pytest.raises(UserError, match=r"has 1 MiB free, converting needs about \d+: free some space"):
            made(("litert",))

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"cannot write .*b\.vidon: no space left on the disk"):
        made(("onnxruntime",))
    assert list(tmp_path.iterdir()) == []
