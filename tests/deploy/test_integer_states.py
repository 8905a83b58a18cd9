"""Int8 files keep their stream states as integers, or let them share a quantiser; files made before still play."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.chatter import hushed
from deploy.export import export_bundle
from deploy.export.integers import integer_states
from deploy.export.onnx import float_onnx, int8_onnx
from deploy.export.step import feeds_of, flat_step
from deploy.runtimes import Options, load, open_session
from deploy.verify import compare, replay, verify
from tests.deploy.conftest import SIDE, lively_student, streams
from toolkit.bundle import Bundle
from toolkit.contract import Contract
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig
from train.models.student import StreamStudent

KEYS = ("onnxruntime-int8", "openvino-int8")


def maps_of(contract: Contract) -> list[str]:
    """States that carry feature maps; the remembered frame is none."""
    return [state.name for state in contract.states if state.shape != contract.frame]


def points_of(model: onnx.ModelProto) -> dict[str, int]:
    """The zero-points that a file tells."""
    found: dict[str, int] = json.loads({entry.key: entry.value for entry in model.metadata_props}["zero_points"])
    return found


@pytest.fixture(scope="module")
def plain(student: StreamStudent, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The int8 files as their quantisers make them, which is what bundles held before."""
    return export_bundle(
        student, path=tmp_path_factory.mktemp("plain") / "plain.vidon", name="plain", labels=("a", "b", "c", "d"),
        preprocess=Preprocess(size=(SIDE, SIDE)), rollouts=streams(4), golden_frames=streams(5)[4],
        runtimes=("onnxruntime", "openvino"), precisions=("int8",), lineage={}, plain=True,
    )  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_files_with_float_states_still_open_and_answer_alike(bundle: Bundle, plain: Bundle, key: str) -> None:
    frames = streams(9)[8]
    old, new = open_session(plain, key, threads=1), open_session(bundle, key, threads=1)
    first = replay(old, frames)
    np.testing.assert_array_equal(replay(old, frames), first)
    result = compare(key, replay(new, frames), first)
    assert result.decibels > 15, result.summary
    assert result.agreement >= 0.9, result.summary


def test_the_states_of_an_onnx_file_are_integers_with_the_channels_last(bundle: Bundle, plain: Bundle) -> None:
    contract, names = bundle.manifest.contract, maps_of(bundle.manifest.contract)
    models = [onnx.load(str(b.root / "models/onnxruntime-int8/model.onnx")) for b in (bundle, plain)]
    shapes = {state.name: state.shape for state in contract.states}
    values = {value.name: value.type.tensor_type for value in (*models[0].graph.input, *models[0].graph.output)}
    for name in names:
        channels, height, width = shapes[name]
        for end in (values[name], values[f"{name}_next"]):
            assert end.elem_type == onnx.TensorProto.UINT8
            assert [size.dim_value for size in end.shape.dim[1:]] == [height, width, channels]
    assert set(points_of(models[0])) == set(names)
    assert values["frame"].elem_type == onnx.TensorProto.FLOAT
    counts = [sum("quantizelinear" in node.op_type.lower() for node in model.graph.node) for model in models]
    assert counts[1] - counts[0] >= 6 * len(names)  # in and out of the state, of the slices and of the concat


def test_a_fresh_integer_state_is_its_zero_point(bundle: Bundle) -> None:
    artefact = bundle.artefact("onnxruntime-int8")
    session = load("onnxruntime").open(
        bundle.root / artefact.folder, artefact, bundle.manifest.contract, Options(batch=2)
    )
    model = onnx.load(str(bundle.root / artefact.folder / artefact.entry))
    points = points_of(model)
    assert any(points.values())
    for frames in zip(*streams(2), strict=True):
        session.step(np.stack(frames))
    session.reset(1)
    held = dict(zip((s.name for s in bundle.manifest.contract.states), session._sets[0], strict=True))  # type: ignore[attr-defined]
    for name, point in points.items():
        assert (held[name].numpy()[1] == point).all()
        assert (held[name].numpy()[0] != point).any()


def test_a_state_with_unequal_parameters_stays_float(student: StreamStudent, tmp_path: Path) -> None:
    contract = student.contract()
    names = maps_of(contract)
    with hushed():
        float_onnx(flat_step(student), contract, tmp_path / "f.onnx", batch=None)
        feeds = feeds_of(flat_step(student), contract, streams(2, 6))
        int8_onnx(tmp_path / "f.onnx", feeds, tmp_path / "plain.onnx")
        int8_onnx(tmp_path / "f.onnx", feeds, tmp_path / "new.onnx", contract)
    assert set(points_of(onnx.load(str(tmp_path / "new.onnx")))) == set(names)
    broken = onnx.load(str(tmp_path / "plain.onnx"))
    for tensor in broken.graph.initializer:
        if tensor.name == f"{names[0]}_scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    assert names[0] not in integer_states(onnx, broken, contract)
    onnx.checker.check_model(broken)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*broken.graph.input, *broken.graph.output)}
    assert kinds[names[0]] == kinds[f"{names[0]}_next"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("config", [
    StudentConfig(width=0.25, depth=0.4, temporal="conv", kernel=3),
    StudentConfig(width=0.25, depth=0.4, temporal="none", readout="motion", blocks=6),
], ids=["conv", "motion"])  # fmt: skip
def test_students_with_other_memories_keep_their_answers(config: StudentConfig, tmp_path: Path) -> None:
    made = export_bundle(
        lively_student(config), path=tmp_path / "b.vidon", name="b", labels=("a", "b", "c", "d"),
        preprocess=Preprocess(size=(SIDE, SIDE)), rollouts=streams(6), golden_frames=streams(7)[6],
        runtimes=("onnxruntime", "openvino"), precisions=("int8",), lineage={},
    )  # fmt: skip
    for result in verify(made):
        assert result.decibels > 15, result.summary


def test_an_openvino_map_has_one_quantiser_for_all_its_users(bundle: Bundle) -> None:
    import openvino

    model = openvino.Core().read_model(bundle.root / "models/openvino-int8/model.xml")
    slices = [node for node in model.get_ops() if node.get_type_name() == "Slice"]
    assert len(slices) >= 2 * len(maps_of(bundle.manifest.contract))
    for node in slices:
        users = [target.get_node().get_type_name() for target in node.output(0).get_target_inputs()]
        assert "FakeQuantize" not in users


def test_openvino_keeps_maps_with_the_channels_last_and_frames_as_they_come(bundle: Bundle) -> None:
    session = open_session(bundle, "openvino-fp32", threads=1)
    held = dict(zip((s.name for s in bundle.manifest.contract.states), session._sets[0], strict=True))  # type: ignore[attr-defined]
    for state in bundle.manifest.contract.states:
        channels, height, width = state.shape
        moved = state.shape != bundle.manifest.contract.frame
        assert held[state.name].shape == ((1, height, width, channels) if moved else (1, *state.shape))
