"""Ethos-U: int8 states that go round as raw integers, Vela's estimates, and what stands in for the device here."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.chatter import hushed
from deploy.estimate import estimate_of_vela, load_estimate
from deploy.export.feedback import feedback_litert, state_quantisation
from deploy.export.litert import int8_litert
from deploy.export.ranges import groups_of, shared_ranges, unequal_states
from deploy.export.step import feeds_of, flat_step
from deploy.export.vela import BOARD as VELA_INI
from deploy.export.vela import ENTRY, compile_vela
from deploy.runtimes import Options, available, load
from deploy.runtimes.ethosu_runtime import RUNTIME
from deploy.targets import REFERENCE, TARGETS
from deploy.vela_config import memory_system, on_board
from deploy.verify import compare, replay
from tests.deploy.conftest import streams
from tests.deploy.tools import needs
from tests.toolkit.test_cli import refused
from toolkit.bundle import Artefact, Bundle
from toolkit.errors import BundleError, ParityError, ToolError, UnavailableDevice, UserError
from train.models.student import StreamStudent

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture(scope="module")
def feeds(student: StreamStudent) -> list[dict[str, np.ndarray]]:
    return feeds_of(flat_step(student), student.contract(), streams(6))


@pytest.fixture(scope="module")
def folder(
    student: StreamStudent, bundle: Bundle, feeds: list[dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artefact as Vela leaves it; the compiled file itself is not run here."""
    made = tmp_path_factory.mktemp("ethosu")
    with hushed():
        feedback_litert(bundle.root / "models/litert-fp32/model.tflite", student.contract(), feeds, made / REFERENCE)
    (made / ENTRY).write_bytes(b"for the device")
    return made


def artefact() -> Artefact:
    return Artefact(runtime="ethosu", precision="int8", entry=ENTRY, target="u55-128", evidence="simulated")


NAMES = st.sampled_from([f"t{index}" for index in range(12)])


@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=8),
    st.lists(st.tuples(NAMES, NAMES), max_size=4),
    st.dictionaries(NAMES, st.tuples(st.floats(-9, 9), st.floats(-9, 9)).map(lambda pair: (min(pair), max(pair)))),
)
def test_groups_share_the_widest_range_and_nothing_else_is_touched(
    moves: list[list[str]], links: list[tuple[str, str]], ranges: dict[str, tuple[float, float]]
) -> None:
    groups = groups_of(moves, links)
    shared = shared_ranges(groups, ranges)
    for after, before in links:
        assert shared.get(after, shared.get(before)) == shared.get(before, shared.get(after))
    linked = {name for link in links for name in link}
    for group in groups:
        assert group & linked
        for name in group & ranges.keys():
            assert shared[name][0] <= min(0.0, ranges[name][0])
            assert shared[name][1] >= max(0.0, ranges[name][1])
            assert shared[name][0] == min([0.0, *(ranges[n][0] for n in group & ranges.keys())])
    assert shared.keys() == set().union(*groups) & ranges.keys() if groups else shared == {}


def test_the_range_of_a_state_holds_the_zero_that_a_fresh_stream_has() -> None:
    group = {"state_00", "state_00_next"}
    above = shared_ranges([group], {"state_00": (0.5, 1.0), "state_00_next": (0.75, 2.0)})
    below = shared_ranges([group], {"state_00": (-3.0, -1.0)})
    assert above == dict.fromkeys(group, (0.0, 2.0))
    assert below == {"state_00": (-3.0, 0.0)}


def test_unequal_states_are_refused_by_name() -> None:
    unequal_states({"state_00": ((0.5, 3), (0.5, 3))})
    with pytest.raises(ParityError, match=r"state_01 goes in with scale 0\.5, zero-point 3 and comes out with 0\.5, 4"):
        unequal_states({"state_00": ((0.5, 3), (0.5, 3)), "state_01": ((0.5, 3), (0.5, 4))})


def test_without_equal_ranges_the_real_quantiser_gives_unequal_states(
    student: StreamStudent, bundle: Bundle, feeds: list[dict[str, np.ndarray]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import deploy.export.feedback as feedback

    monkeypatch.setattr(feedback, "equal_states", lambda source, contract, measured: measured)
    with hushed(), pytest.raises(ParityError, match=r"state_0[0-9] goes in with scale"):
        feedback_litert(bundle.root / "models/litert-fp32/model.tflite", student.contract(), feeds, tmp_path / "x")


def test_every_state_comes_out_as_it_goes_in(folder: Path, student: StreamStudent) -> None:
    pairs = state_quantisation(folder / REFERENCE, student.contract())
    assert set(pairs) == {state.name for state in student.contract().states}
    assert all(inside == outside for inside, outside in pairs.values())


def test_no_requantising_operator_is_left_in_the_file(folder: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    kinds = {row["op_name"] for row in Interpreter(str(folder / REFERENCE))._get_ops_details()}
    assert "CONCATENATION" in kinds
    assert not kinds & {"QUANTIZE", "DEQUANTIZE"}


def test_int8_feedback_gives_the_float_models_answers(folder: Path, bundle: Bundle, student: StreamStudent) -> None:
    golden = bundle.golden()
    session = RUNTIME.open(folder, artefact(), student.contract(), Options(device="reference"))
    result = compare("ethosu", replay(session, golden.frames), golden.logits)
    assert result.decibels > 20, result.summary
    assert result.agreement >= 0.9, result.summary
    assert session.placement().device == "reference"
    assert session.placement().detail["evidence"] == "simulated"


def test_feedback_does_not_drift_over_a_long_stream(folder: Path, student: StreamStudent) -> None:
    import torch

    frames = np.concatenate([streams(4)[index % 4] for index in range(40)])
    session = RUNTIME.open(folder, artefact(), student.contract(), Options(device="reference"))
    with torch.no_grad():
        want = student(torch.from_numpy(frames[-40:])[None])[0].numpy()
    result = compare("ethosu", replay(session, frames)[-20:], want[-20:])
    assert result.decibels > 15, result.summary


def test_a_zero_state_is_the_zero_point_and_reset_forgets(folder: Path, student: StreamStudent) -> None:
    session = RUNTIME.open(folder, artefact(), student.contract(), Options(device="reference"))
    first, second = streams(2)
    want = replay(session, first)
    replay(session, second)
    np.testing.assert_array_equal(replay(session, first), want)
    session.reset()
    points = {name: pair[0][1] for name, pair in state_quantisation(folder / REFERENCE, student.contract()).items()}
    assert any(points.values())
    assert all((session._states[name] == point).all() for name, point in points.items())


def test_starting_from_the_integer_zero_would_be_wrong(folder: Path, bundle: Bundle, student: StreamStudent) -> None:
    session = RUNTIME.open(folder, artefact(), student.contract(), Options(device="reference"))
    frame = bundle.golden().frames[:1]
    right = session.step(frame)
    session.reset()
    session._states = {name: np.zeros_like(state) for name, state in session._states.items()}
    assert np.abs(session.step(frame) - right).max() > 0


def test_without_the_device_it_says_so_and_never_poses_as_one(folder: Path, student: StreamStudent) -> None:
    state = available("ethosu")
    if state.ok:
        pytest.skip("this machine has an Ethos-U")
    assert "no Ethos-U (/dev/ethosu0 is absent)" in state.why
    for device in ("npu", "cpu"):
        with pytest.raises(UnavailableDevice, match=f"no device '{device}' here.*reference"):
            load("ethosu").open(folder, artefact(), student.contract(), Options(device=device))


def test_a_float_file_or_a_missing_one_is_refused(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    contract = bundle.manifest.contract
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copyfile(bundle.root / "models/litert-fp32/model.tflite", copy / REFERENCE)
    with pytest.raises(BundleError, match="inputs and outputs are not int8"):
        RUNTIME.open(copy, artefact(), contract, Options(device="reference"))
    (copy / REFERENCE).write_bytes(b"\x07nonsense" * 9)
    with pytest.raises(BundleError, match="ethosu cannot read"):
        RUNTIME.open(copy, artefact(), contract, Options(device="reference"))
    (copy / ENTRY).unlink()
    with pytest.raises(BundleError, match="file is missing"):
        RUNTIME.open(copy, artefact(), contract, Options(device="reference"))
    with pytest.raises(UserError, match="one stream at a time: open 3 sessions"):
        RUNTIME.open(folder, artefact(), contract, Options(device="reference", batch=3))


def _sample() -> tuple[dict[str, str], list[dict[str, str]]]:
    with (SAMPLES / "vela_summary.csv").open() as summary, (SAMPLES / "vela_per-layer.csv").open() as layers:
        return next(csv.DictReader(summary)), list(csv.DictReader(layers))


def test_velas_tables_are_read_with_their_units() -> None:
    summary, layers = _sample()
    estimate = estimate_of_vela("u55-128", "5.2.0", summary, layers)
    assert estimate.evidence == "vendor-estimated"
    assert estimate.clock_mhz == 500
    assert estimate.inference_ms is not None
    # 500 MHz: the time and the cycles are the same figure.
    assert estimate.inference_ms == pytest.approx(estimate.cycles / 500e3)
    assert estimate.cycles == sum(layer.cycles for layer in estimate.layers)
    convolution = next(layer for layer in estimate.layers if layer.operator == "Conv2D")
    assert convolution.macs == 8 * 8 * 16 * 27
    assert estimate.metrics["estimated_sram_kib"] == float(summary["sram_memory_used"])
    assert estimate.metrics["cpu_operators"] == 4


def test_operators_left_to_the_processor_are_named() -> None:
    estimate = estimate_of_vela("u55-128", "5.2.0", *_sample())
    assert estimate.left_on_cpu[0] == "Quantize (serving_default_frame_quantized)"
    assert {name.split()[0] for name in estimate.left_on_cpu} == {"Quantize", "Dequantize"}


def test_a_damaged_estimate_is_refused_and_none_is_none(tmp_path: Path) -> None:
    assert load_estimate(tmp_path) is None
    (tmp_path / "estimate.json").write_text(json.dumps({"tool": "x"}))
    with pytest.raises(BundleError, match="is damaged"):
        load_estimate(tmp_path)


@needs("ethos-u")
@pytest.mark.parametrize("name", ["u55-128", "u55-256", "u65-256", "u85-256"])
def test_vela_leaves_no_operator_to_the_processor(folder: Path, tmp_path: Path, name: str) -> None:
    estimate = compile_vela(folder / REFERENCE, TARGETS[name], tmp_path)
    assert estimate.left_on_cpu == ()
    assert estimate.cycles > 0
    assert estimate == load_estimate(tmp_path)
    assert (tmp_path / ENTRY).read_bytes() != (folder / REFERENCE).read_bytes()


@needs("ethos-u")
def test_float_inputs_would_leave_operators_to_the_processor(
    bundle: Bundle, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with hushed():
        int8_litert(bundle.root / "models/litert-fp32/model.tflite", feeds, tmp_path / "float-io.tflite")
    estimate = compile_vela(tmp_path / "float-io.tflite", TARGETS["u55-128"], tmp_path / "out")
    assert any(name.startswith("Quantize") for name in estimate.left_on_cpu)


# Half the flash bandwidth of Arm's reference system, twice its latency; a second one shows the choice.
BOARD = """
[System_Config.My_Board]
core_clock=500e6
axi0_port=Sram
axi1_port=OffChipFlash
Sram_clock_scale=1.0
Sram_burst_length=32
Sram_read_latency=32
Sram_write_latency=32
Sram_max_reads=4
Sram_max_writes=4
OffChipFlash_clock_scale=0.0625
OffChipFlash_burst_length=128
OffChipFlash_read_latency=128
OffChipFlash_max_reads=2

[System_Config.My_Slow_Board]
inherit=System_Config.My_Board
core_clock=250e6

[Memory_Mode.My_Sram]
const_mem_area=Axi1
arena_mem_area=Axi0
cache_mem_area=Axi0
"""


@needs("ethos-u")
def test_a_boards_own_memory_system_changes_what_vela_estimates(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.ini"
    file.write_text(BOARD)
    found = {}
    for name in ("My_Board", "My_Slow_Board"):
        (target,) = on_board([TARGETS["u55-128"]], memory_system(file, name))
        found[name] = compile_vela(folder / REFERENCE, target, tmp_path / name)
        assert found[name].system == f"{name}, My_Sram"
        assert (tmp_path / name / VELA_INI).read_text() == BOARD
    usual = compile_vela(folder / REFERENCE, TARGETS["u55-128"], tmp_path / "usual")
    assert not (tmp_path / "usual" / VELA_INI).exists()
    assert (found["My_Board"].clock_mhz, found["My_Slow_Board"].clock_mhz) == (500, 250)
    # Slower flash is another schedule, not simply a slower one: Vela then keeps more weights in SRAM.
    assert found["My_Board"].cycles != usual.cycles
    assert found["My_Board"].layers != usual.layers
    assert found["My_Slow_Board"].inference_ms > 1.9 * found["My_Board"].inference_ms  # type: ignore[operator]


def test_a_memory_system_that_is_not_in_the_file_names_those_that_are(tmp_path: Path) -> None:
    file = tmp_path / "board.ini"
    file.write_text(BOARD)
    assert memory_system(file, "My_Board") == memory_system(file, "My_Board", "My_Sram")
    for arguments, message in (
        ((file,), "several System_Config sections: choose with --system-config from My_Board, My_Slow_Board"),
        ((file, "MyBoard"), r"no section \[System_Config.MyBoard\] \(did you mean 'My_Board'\?\); it has: My_Board, "),
        ((file, "My_Board", "Sram"), r"no section \[Memory_Mode.Sram\].*it has: My_Sram"),
        ((tmp_path / "none.ini",), "give the path of an .ini file that exists"),
        ((Path(__file__),), "give the path of an .ini file"),
    ):
        with pytest.raises(UserError, match=message):
            memory_system(*arguments)
    file.write_text("[Memory_Mode.Sram]\n")
    with pytest.raises(UserError, match=r"has no section \[System_Config.NAME\]"):
        memory_system(file)
    file.write_text("core_clock = 1\n")
    with pytest.raises(UserError, match=r"board.ini cannot be read: "):
        memory_system(file)


def test_a_vela_configuration_wants_an_ethos_u_among_the_targets(tmp_path: Path) -> None:
    file = tmp_path / "board.ini"
    file.write_text(BOARD)
    with pytest.raises(UserError, match="for Ethos-U targets: name one, for example  --target u55-128"):
        on_board([TARGETS["rk3588"]], memory_system(file, "My_Board"))
    both = on_board([TARGETS["rk3588"], TARGETS["u65-256"]], memory_system(file, "My_Board"))
    assert both[0] == TARGETS["rk3588"]
    assert both[1].settings["accelerator"] == "ethos-u65-256"
    assert both[1].settings["config"] == str(file)
    missing = refused("export", tmp_path, "--target", "u55-128", "--vela-config", tmp_path / "no.ini")
    assert "give the path of an .ini file that exists" in missing
    assert "give it with --vela-config" in refused("quantize", tmp_path, "--system-config", "My_Board")


@needs("ethos-u")
def test_what_vela_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"nonsense" * 20)
    with pytest.raises(ToolError, match=r"^ethos-u: ") as caught:
        compile_vela(tmp_path / "bad.tflite", TARGETS["u55-128"], tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_bundles_report_labels_what_is_estimated(bundle: Bundle, tmp_path: Path) -> None:
    from deploy.bundle_report import report_of
    from deploy.report import write_report
    from toolkit.bundle import open_bundle, seal

    copy = tmp_path / "npu.vidon"
    shutil.copytree(bundle.root, copy)
    estimate = estimate_of_vela("u55-128", "5.2.0", *_sample())
    made = artefact().model_copy(update={"metrics": {"size_bytes": 10.0, "agreement": 1.0, **estimate.metrics}})
    (copy / made.folder).mkdir()
    (copy / made.folder / "estimate.json").write_text(estimate.model_dump_json())
    (copy / made.folder / made.entry).write_bytes(b"for the device")
    seal(copy, bundle.manifest.model_copy(update={"artefacts": (*bundle.manifest.artefacts, made)}))
    report = report_of(open_bundle(copy))
    rungs = {rung.name: rung for rung in report.rungs}
    assert rungs["ethosu-int8-u55-128"].evidence == "estimated"
    assert rungs["ethosu-int8-u55-128"].p50_ms == estimate.inference_ms
    assert rungs["litert-fp32"].p50_ms is None
    page = write_report(report, tmp_path / "report").read_text()
    assert "vendor-estimated by ethos-u-vela 5.2.0" in page
    assert "Quantize (serving_default_frame_quantized)" in page
