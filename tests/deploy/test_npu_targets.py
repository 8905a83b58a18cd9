"""Chips by name: what is asked is checked before any work, and every simulator gives the float model's answers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploy.chatter import hushed
from deploy.doctor import diagnose
from deploy.estimate import estimate_of_rknn
from deploy.export import export_bundle, targets_of
from deploy.export.limits import find_blockers
from deploy.export.onnx import float_onnx
from deploy.export.qdq import Activations, qdq_onnx
from deploy.export.rewrite import for_npu
from deploy.export.step import feeds_of, flat_step, sample_inputs
from deploy.runtimes import RUNTIMES, Options, available, load, open_session, working
from deploy.targets import COMPILED, SOURCE, TARGETS, target_called, targets_for
from deploy.verify import compare, replay, verify
from devices.tools import TOOLS, environment
from devices.tools.worker import placed_layers
from tests.deploy.conftest import SIDE, lively_student, streams
from tests.deploy.tools import needs
from tests.toolkit.test_cli import refused, vidon
from toolkit.bundle import Artefact, Bundle
from toolkit.errors import BundleError, MissingTool, UnavailableDevice, UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig, TeacherConfig
from train.models.student import StreamStudent
from train.models.vit import TubeletViT

SAMPLES = Path(__file__).parent / "samples"


def exported(model: object, path: Path, *targets: str, runtimes: tuple[str, ...] = ()) -> Bundle:
    return export_bundle(
        model, path=path, name="npu", labels=("a", "b", "c", "d"), preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=streams(6), golden_frames=streams(7)[6], runtimes=runtimes, precisions=("int8",), lineage={},
        targets=targets,
    )  # fmt: skip


@pytest.fixture
def nothing_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDON_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(environment, "_importable", lambda module: False)


def test_every_target_has_a_runtime_and_a_tool_that_exist() -> None:
    for target in TARGETS.values():
        assert target.runtime in RUNTIMES
        assert target.runtime in COMPILED
        assert target.tool in TOOLS
    assert all(TARGETS[name].runtime == runtime for runtime, name in COMPILED.items())


def test_a_runtime_without_a_target_gets_its_usual_one_and_a_target_brings_its_runtime() -> None:
    assert [t.name for t in targets_for(("litert", "rknn"), ("u55-256",))] == ["u55-256", "rk3588"]
    assert [t.name for t in targets_for(("rknn",), ("rk3566",))] == ["rk3566"]
    assert targets_for(("onnxruntime",), ()) == []
    with pytest.raises(UserError, match="named twice"):
        targets_for((), ("rk3566", "rk3566"))


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown target 'rk3558'.*did you mean 'rk3588'"):
        target_called("rk3558")


def test_compiled_runtimes_are_no_processor_targets() -> None:
    assert targets_of(("litert", "ethosu"), ("fp32", "int8")) == [("litert", "fp32"), ("litert", "int8")]
    assert targets_of(("ethosu",), ("int8",)) == []


@pytest.mark.usefixtures("nothing_set_up")
@pytest.mark.parametrize(("target", "tool"), [("u55-128", "ethos-u"), ("rk3588", "rockchip"), ("sm8650", "qualcomm")])
def test_a_missing_tool_is_said_with_its_command_and_nothing_is_left(
    student: StreamStudent, tmp_path: Path, target: str, tool: str
) -> None:
    with pytest.raises(MissingTool, match=f"run  vidon devices setup {tool}$"):
        exported(student, tmp_path / "b.vidon", target)
    assert not (tmp_path / "b.vidon").exists()


@pytest.mark.usefixtures("nothing_set_up")
def test_the_doctor_names_every_missing_tool_and_simulator() -> None:
    fixes = {finding.fix for finding in diagnose() if not finding.ok}
    assert {f"vidon devices setup {name}" for name in TOOLS} <= fixes


@pytest.mark.usefixtures("nothing_set_up")
@pytest.mark.parametrize(("runtime", "tool"), [("rknn", "rockchip"), ("qnn", "qualcomm")])
def test_opening_without_chip_or_simulator_names_the_command(
    bundle: Bundle, tmp_path: Path, runtime: str, tool: str
) -> None:
    artefact = Artefact(runtime=runtime, precision="int8", entry="model", target="rk3588")
    with pytest.raises(MissingTool, match=f"vidon devices setup {tool}$"):
        load(runtime).open(tmp_path, artefact, bundle.manifest.contract, Options(device="npu"))


@pytest.mark.parametrize("runtime", COMPILED)
def test_a_simulator_never_counts_as_a_working_runtime(runtime: str) -> None:
    state = available(runtime)
    if state.ok:
        pytest.skip("this machine has the device")
    assert state.why
    assert not {"npu", "gpu", "cpu"} & set(state.devices)


@pytest.mark.parametrize("runtime", ["ethosu", "rknn", "qnn"])
def test_a_clip_model_is_refused_with_operator_layer_and_a_way_out(runtime: str) -> None:
    teacher = TubeletViT(TeacherConfig(dim=32, depth=1, heads=2, tubelet=(2, 8, 8)), 3, (3, SIDE, SIDE), 4).eval()
    blockers = find_blockers(flat_step(teacher), teacher.contract(), [f"{runtime}-int8-x"])
    assert re.match(rf"{runtime}-int8-x cannot take conv3d \(layer \w*embed", blockers[0].line)
    assert "vidon distill" in blockers[0].line


@pytest.mark.parametrize("readout", ["average", "motion"])
def test_rewriting_for_an_npu_keeps_the_answers_and_drops_abs_and_mean(readout: str) -> None:
    motion = StudentConfig(width=0.25, depth=0.4, temporal="none", readout="motion", blocks=6)
    model = lively_student(motion if readout == "motion" else None)
    step = flat_step(model)
    inputs = sample_inputs(model.contract())
    before = torch.export.export(step, inputs).graph
    after = torch.export.export(for_npu(step), inputs).graph
    assert any(str(node.target).startswith(("aten.abs", "aten.mean")) for node in before.nodes)
    assert not any(str(node.target).startswith(("aten.abs", "aten.mean")) for node in after.nodes)
    values = [torch.randn_like(value) for value in inputs]
    for one, other in zip(step(*values), for_npu(step)(*values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def float_file(student: StreamStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("float") / "float.onnx"
    with hushed():
        float_onnx(flat_step(student), student.contract(), path, opset=18, batch=1)
    return path


@pytest.mark.parametrize("activations", ["u8", "s8", "s8-symmetric"])
def test_states_have_equal_parameters_in_the_qdq_file(
    student: StreamStudent, float_file: Path, tmp_path: Path, activations: Activations
) -> None:
    contract = student.contract()
    with hushed():
        feeds = feeds_of(flat_step(student), contract, streams(2, 6))
        qdq_onnx(float_file, contract, feeds, tmp_path / "q.onnx", activations)
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = {"u8": np.uint8, "s8": np.int8, "s8-symmetric": np.int8}
    into: dict[str, tuple[Any, Any]] = {}
    out: dict[str, tuple[Any, Any]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0].startswith("state_"):
            into.setdefault(node.input[0], (values[node.input[1]], values[node.input[2]]))
        if node.op_type == "DequantizeLinear" and node.output[0].endswith("_next"):
            out[node.output[0]] = (values[node.input[1]], values[node.input[2]])
    shared = [state for state in contract.states if state.name in into and state.output in out]
    assert len(shared) >= len(contract.states) - 1
    for state in shared:
        assert into[state.name] == out[state.output]
        assert into[state.name][1].dtype == kinds[activations]
        assert activations != "s8-symmetric" or into[state.name][1] == 0


def test_rockchips_placement_table_is_read() -> None:
    text = (SAMPLES / "rknn_build.txt").read_text()
    estimate = estimate_of_rknn("rk3588", "2.5.0", placed_layers(text))
    assert [(layer.operator, layer.placed, layer.cycles) for layer in estimate.layers] == [
        ("Conv", "npu", 160),
        ("Reshape", "cpu", 0),
    ]
    assert estimate.inference_ms is None
    assert "estimated_ms" not in estimate.metrics


@pytest.mark.parametrize(
    ("target", "decibels"),
    [
        pytest.param("u55-128", 20, marks=needs("ethos-u")),
        pytest.param("rk3566", 18, marks=needs("rockchip")),
        pytest.param("sm8650", 20, marks=needs("qualcomm")),
        pytest.param("rtx-sm89", 20, marks=needs("tensorrt-rtx")),
    ],
)
def test_a_target_is_compiled_checked_and_played(
    student: StreamStudent, tmp_path: Path, target: str, decibels: float
) -> None:
    made = exported(student, tmp_path / "b.vidon", target)
    (artefact,) = made.manifest.artefacts
    assert artefact.key == f"{artefact.runtime}-int8-{target}"
    assert artefact.evidence in {"simulated", "compiled"}
    assert artefact.metrics["decibels"] > decibels
    assert artefact.metrics["agreement"] >= 0.9
    (checked,) = verify(made, [artefact.key])
    assert checked.decibels == pytest.approx(artefact.metrics["decibels"], abs=0.5)
    keys, left_out = working(made) if available(artefact.runtime).ok else ([], {artefact.key: "?"})
    assert artefact.key in (*keys, *left_out)
    device = available(artefact.runtime).devices[0]
    session = open_session(made, artefact.key, device=device)
    frames = streams(9)[8]
    first = replay(session, frames)
    np.testing.assert_array_equal(replay(session, frames), first)
    with torch.no_grad():
        want = student(torch.from_numpy(frames)[None])[0].numpy()
    assert compare(target, first, want).decibels > decibels - 3
    assert session.placement().detail["evidence"] == artefact.evidence
    session.close()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.step(frames[:1])
    with pytest.raises(UnavailableDevice, match="no device 'cpu' here"):
        open_session(made, artefact.key)
    entry = made.root / artefact.folder / artefact.entry
    entry.unlink()
    with pytest.raises(BundleError, match="file is missing"):
        load(artefact.runtime).open(entry.parent, artefact, made.manifest.contract, Options(device=device))


@needs("rockchip")
def test_a_source_that_the_simulator_cannot_read_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.rknn").write_bytes(b"x")
    (tmp_path / SOURCE).write_bytes(b"\x07nonsense" * 50)
    artefact = Artefact(runtime="rknn", precision="int8", entry="model.rknn", target="rk3588")
    with pytest.raises(BundleError, match="rknn cannot read") as caught:
        load("rknn").open(tmp_path, artefact, bundle.manifest.contract, Options(device="simulator"))
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_unknown_tools_and_targets(tmp_path: Path) -> None:
    assert "did you mean 'qualcomm'" in refused("devices", "setup", "qualcom")
    code, out, _ = vidon("devices", "setup", "--help")
    assert code == 0
    assert "Example" in out


def test_the_manifest_keeps_target_and_evidence(tmp_path: Path) -> None:
    artefact = Artefact(runtime="rknn", precision="int8", entry="m", target="rk3566", evidence="simulated")
    assert (artefact.key, artefact.folder) == ("rknn-int8-rk3566", "models/rknn-int8-rk3566")
    assert Artefact.model_validate(json.loads(artefact.model_dump_json())) == artefact
    # Bundles written before there were targets still open.
    assert Artefact.model_validate({"runtime": "litert", "precision": "int8", "entry": "m"}).key == "litert-int8"


@pytest.mark.parametrize("readout", ["average", "motion"])
def test_four_dimensional_linear_layers_give_the_same_answers(
    student: StreamStudent, float_file: Path, readout: str, tmp_path: Path
) -> None:
    import onnxruntime

    from deploy.export.rknn import four_dimensions

    path, contract = float_file, student.contract()
    if readout == "motion":
        config = StudentConfig(
            width=0.25, depth=0.4, temporal="none", readout="motion", blocks=1, lags=(1,), bends=(1,)
        )
        model = lively_student(config)
        path, contract = tmp_path / "flat.onnx", model.contract()
        with hushed():
            float_onnx(flat_step(model), contract, path, opset=18, batch=1)
    changed = onnx.load(str(path))
    four_dimensions(changed.graph)
    assert not {node.op_type for node in changed.graph.node} & {"Gemm", "Flatten", "Reshape"}
    feed = {"frame": streams(1)[0][:1], **contract.zeros()}
    answers = []
    for proto in (onnx.load(str(path)), changed):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(["logits"], feed)[0])
    assert answers[1].shape == (1, contract.classes, 1, 1)
    np.testing.assert_allclose(answers[1].reshape(1, -1), answers[0], atol=1e-5)
