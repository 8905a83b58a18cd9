"""What every runtime must do, in every precision: one suite, run over all adapters."""

import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.runtimes import Options, available, load, open_session
from deploy.verify import compare, replay
from tests.deploy.conftest import KEYS, streams
from toolkit.bundle import Bundle
from toolkit.contract import Session
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice, UserError
from train.models.student import StreamStudent

LIBRARIES = {
    "torch": ("torch",), "onnxruntime": ("onnxruntime",), "openvino": ("openvino",),
    "litert": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
}  # fmt: skip


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(bundle: Bundle, key: str) -> Session:
    return open_session(bundle, key, threads=1)


def test_the_stream_equals_the_clip_form_in_torch(student: StreamStudent, session: Session, key: str) -> None:
    frames = streams(9)[8]
    with torch.no_grad():
        clip = student(torch.from_numpy(frames)[None])[0].numpy()
    result = compare(key, replay(session, frames), clip)
    if key.endswith("fp32"):
        assert result.max_diff < 1e-4, result.summary
    else:
        assert result.decibels > 15, result.summary
        assert result.agreement >= 0.9, result.summary


def test_reset_makes_a_session_forget(session: Session) -> None:
    first, second = streams(2)
    want = replay(session, first)
    for frame in second:
        session.step(frame[None])
    np.testing.assert_array_equal(replay(session, first), want)


def test_without_reset_the_past_counts(session: Session) -> None:
    first, second = streams(2)
    fresh = replay(session, first)
    replay(session, second)
    assert np.abs(session.step(first[:1]) - fresh[:1]).max() > 1e-4


def test_two_interleaved_sessions_do_not_mix(bundle: Bundle, key: str) -> None:
    a, b = open_session(bundle, key, threads=1), open_session(bundle, key, threads=1)
    first, second = streams(2)
    alone = replay(a, first), replay(b, second)
    a.reset()
    b.reset()
    mixed = [(a.step(x[None]), b.step(y[None])) for x, y in zip(first, second, strict=True)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in mixed]), alone[0])
    np.testing.assert_array_equal(np.concatenate([y for _, y in mixed]), alone[1])


def test_a_thousand_steps_do_not_drift(student: StreamStudent, session: Session, key: str) -> None:
    frames = np.concatenate([streams(4)[index % 4] for index in range(84)])[:1000]
    with torch.no_grad():
        want = student(torch.from_numpy(frames[-40:])[None])[0].numpy()
    got = replay(session, frames)
    # The student's memory is finite: its last answers depend on the last frames only.
    result = compare(key, got[-20:], want[-20:])
    assert result.max_diff < (1e-3 if key.endswith("fp32") else 0.5), result.summary


def test_answers_do_not_change_under_the_callers_hands(session: Session) -> None:
    frames = streams(1)[0]
    first = session.step(frames[:1])
    kept = first.copy()
    session.step(frames[1:2])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), "shape"),
        (np.zeros((2, 3, 32, 32), np.float32), "shape"),
        (np.zeros((1, 3, 32, 32), np.float64), "dtype"),
        (np.full((1, 3, 32, 32), np.nan, np.float32), "NaN"),
    ],
)
def test_a_wrong_frame_is_refused_and_harms_nothing(session: Session, frame: np.ndarray, message: str) -> None:
    stream = streams(1)[0]
    want = replay(session, stream)
    session.reset()
    with pytest.raises(UserError, match=message):
        session.step(frame)
    np.testing.assert_array_equal(replay(session, stream), want)


def test_a_closed_session_says_so_and_closes_twice(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.step(streams(1)[0][:1])
    with pytest.raises(UserError, match="closed"):
        session.reset()


def test_placement_tells_what_ran_where(session: Session, key: str) -> None:
    placement = session.placement()
    assert f"{placement.runtime}-{placement.precision}" == key
    assert placement.device == "cpu"
    assert placement.detail


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_a_damaged_file_is_one_clear_line(bundle: Bundle, key: str, damage: str, tmp_path: Path) -> None:
    artefact = bundle.artefact(key)
    folder = tmp_path / "model"
    shutil.copytree(bundle.root / artefact.folder, folder)
    file = folder / artefact.entry
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:200] if damage == "truncated" else b"\x07nonsense" * 50)
    with pytest.raises(BundleError, match=f"{artefact.runtime}") as caught:
        load(artefact.runtime).open(folder, artefact, bundle.manifest.contract, Options())
    assert "\n" not in str(caught.value)


def test_an_unknown_device_names_those_there_are(bundle: Bundle, key: str) -> None:
    with pytest.raises(UnavailableDevice, match=r"no device 'npu9' here.*cpu"):
        open_session(bundle, key, device="npu9")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_names_the_extra(bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in LIBRARIES[name]:
        monkeypatch.setitem(sys.modules, library, None)
    state = available(name)
    assert not state.ok
    assert f"pip install 'vidon[{name}]'" in state.why
    with pytest.raises(MissingDependency, match="pip install"):
        open_session(bundle, f"{name}-fp32")


def test_an_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown runtime 'openvno' \(did you mean 'openvino'\?\)"):
        load("openvno")


def test_memory_does_not_grow_with_the_stream(session: Session) -> None:
    frame = streams(1)[0][:1]
    for _ in range(300):
        session.step(frame)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1500):
        session.step(frame)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 24


def test_pickled_data_in_a_torch_archive_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    import zipfile

    artefact = bundle.artefact("torch-fp32")
    shutil.copytree(bundle.root / artefact.folder, tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m" / artefact.entry, "a") as archive:
        archive.writestr("model/data/evil.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BundleError, match="holds pickled data"):
        load("torch").open(tmp_path / "m", artefact, bundle.manifest.contract, Options())


def test_states_that_only_move_on_are_copied_oldest_first() -> None:
    from deploy.runtimes.litert_runtime import _in_order

    moved = _in_order([(9, 1), (1, 2), (2, 3)])  # state 1 <- new map, 2 <- old 1, 3 <- old 2
    memory = {1: "a", 2: "b", 3: "c", 9: "new"}
    for source, target in moved:
        memory[target] = memory[source]
    assert memory == {1: "new", 2: "a", 3: "b", 9: "new"}
    with pytest.raises(BundleError, match="circle"):
        _in_order([(1, 2), (2, 1)])
