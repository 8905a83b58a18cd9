"""What every runtime must do, in every precision: one suite, run over all adapters.

It needs numpy and the runtimes only, and so runs on a board as well (tests.deploy.prepared says how).
"""

import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.runtimes import Options, Streams, available, load, open_session
from deploy.verify import compare, replay
from tests.deploy.conftest import KEYS, streams
from tests.deploy.prepared import LONG, Rollouts
from toolkit.bundle import Bundle
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice, UserError

#: tflite-runtime, the older of the two packages, has the interpreter alone.
HAS_COMPILED = importlib.util.find_spec("ai_edge_litert") is not None
LIBRARIES = {
    "torch": ("torch",), "onnxruntime": ("onnxruntime",), "openvino": ("openvino",),
    "litert": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
}  # fmt: skip


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(bundle: Bundle, key: str) -> Streams:
    return open_session(bundle, key, threads=1)


def assert_close_enough(key: str, got: np.ndarray, want: np.ndarray) -> None:
    """Equal to rounding in fp32; in int8 a value may round to the next step when kernels change with the batch."""
    result = compare(key, got, want)
    assert result.max_diff < 1e-5 if key.endswith("fp32") else result.decibels > 25, result.summary


def test_the_golden_steps_are_answered_as_the_float_model_did(bundle: Bundle, session: Streams, key: str) -> None:
    golden = bundle.golden()
    result = compare(key, replay(session, golden.frames), golden.logits)
    assert result.max_diff < 1e-4 if key.endswith("fp32") else result.decibels > 15, result.summary


def test_the_stream_equals_the_clip_form_in_torch(rollouts: Rollouts, session: Streams, key: str) -> None:
    result = compare(key, replay(session, streams(9)[8]), rollouts.short)
    if key.endswith("fp32"):
        assert result.max_diff < 1e-4, result.summary
    else:
        assert result.decibels > 15, result.summary
        assert result.agreement >= 0.9, result.summary


def test_reset_makes_a_session_forget(session: Streams) -> None:
    first, second = streams(2)
    want = replay(session, first)
    for frame in second:
        session.step(frame[None])
    np.testing.assert_array_equal(replay(session, first), want)


def test_without_reset_the_past_counts(session: Streams) -> None:
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


def test_a_thousand_steps_do_not_drift(rollouts: Rollouts, session: Streams, key: str) -> None:
    got = replay(session, LONG)
    # The student's memory is finite: its last answers depend on the last frames only.
    result = compare(key, got[-20:], rollouts.long[-20:])
    assert result.max_diff < (1e-3 if key.endswith("fp32") else 0.5), result.summary


def test_answers_do_not_change_under_the_callers_hands(session: Streams) -> None:
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
def test_a_wrong_frame_is_refused_and_harms_nothing(session: Streams, frame: np.ndarray, message: str) -> None:
    stream = streams(1)[0]
    want = replay(session, stream)
    session.reset()
    with pytest.raises(UserError, match=message):
        session.step(frame)
    np.testing.assert_array_equal(replay(session, stream), want)


def test_a_closed_session_says_so_and_closes_twice(session: Streams) -> None:
    session.close()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.step(streams(1)[0][:1])
    with pytest.raises(UserError, match="closed"):
        session.reset()


def test_placement_tells_what_ran_where(session: Streams, key: str) -> None:
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


@pytest.mark.adapter("litert")
@pytest.mark.parametrize("key", ["litert-fp32", "litert-int8"])
def test_a_file_that_is_cut_off_anywhere_is_refused_and_crashes_nothing(
    bundle: Bundle, key: str, tmp_path: Path
) -> None:
    artefact = bundle.artefact(key)
    whole = (bundle.root / artefact.folder / artefact.entry).read_bytes()
    cuts = [0, 4, 8, 20, 200, 1000, *(len(whole) * share // 16 for share in range(1, 16)), len(whole) - 64]
    for cut in cuts:
        (tmp_path / artefact.entry).write_bytes(whole[:cut])
        with pytest.raises(BundleError, match=r"litert cannot read .*copy the bundle again"):
            load("litert").open(tmp_path, artefact, bundle.manifest.contract, Options())
    (tmp_path / artefact.entry).write_bytes(whole)
    load("litert").open(tmp_path, artefact, bundle.manifest.contract, Options()).close()


def test_an_unknown_device_names_those_there_are(bundle: Bundle, key: str) -> None:
    with pytest.raises(UnavailableDevice, match=r"no device 'npu9' here.*cpu"):
        open_session(bundle, key, device="npu9")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.adapter(name)) for name in LIBRARIES])
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


def resident_mib() -> float:
    """Memory of this process now (not its peak)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("key", [
    pytest.param(key, marks=pytest.mark.slow if key.startswith("torch") else ()) for key in KEYS
])  # fmt: skip
def test_memory_does_not_grow_over_ten_thousand_steps(bundle: Bundle, key: str) -> None:
    session, frame = open_session(bundle, key, threads=1), streams(1)[0][:1]
    for _ in range(300):
        session.step(frame)
    before = resident_mib()
    for _ in range(10_000):
        session.step(frame)
    assert resident_mib() - before < 8


@pytest.mark.adapter("torch")
def test_memory_does_not_grow_with_torch_either(bundle: Bundle) -> None:
    session, frame = open_session(bundle, "torch-fp32", threads=1), streams(1)[0][:1]
    for _ in range(300):
        session.step(frame)
    before = resident_mib()
    for _ in range(1500):
        session.step(frame)
    assert resident_mib() - before < 8


def test_a_batch_of_streams_equals_single_streams(bundle: Bundle, key: str) -> None:
    many, one = open_session(bundle, key, threads=1, batch=3), open_session(bundle, key, threads=1)
    flows = streams(3)
    got = np.stack([many.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
    for index, flow in enumerate(flows):
        assert_close_enough(key, got[:, index], replay(one, flow))


def test_one_stream_of_a_batch_can_be_forgotten(bundle: Bundle, key: str) -> None:
    many, one = open_session(bundle, key, threads=1, batch=2), open_session(bundle, key, threads=1)
    first, second = streams(2)
    for a, b in zip(first[:5], second[:5], strict=True):
        many.step(np.stack([a, b]))
    many.reset(1)
    got = np.stack([many.step(np.stack([a, b])) for a, b in zip(first[5:], second[5:], strict=True)])
    assert_close_enough(key, got[:, 0], replay(one, first)[5:])
    assert_close_enough(key, got[:, 1], replay(one, second[5:]))
    with pytest.raises(UserError, match="no stream 2"):
        many.reset(2)


def test_a_batch_of_the_wrong_size_is_refused(bundle: Bundle, key: str) -> None:
    many = open_session(bundle, key, threads=1, batch=2)
    with pytest.raises(UserError, match=r"shape \(1, 3, 32, 32\), the model takes \(2, 3, 32, 32\)"):
        many.step(streams(1)[0][:1])


def test_sessions_in_threads_of_their_own_do_not_mix(bundle: Bundle, key: str) -> None:
    flows = streams(2)
    sessions = [open_session(bundle, key, threads=1) for _ in flows]
    want = [replay(session, flow) for session, flow in zip(sessions, flows, strict=True)]
    got: list[list[np.ndarray]] = [[], []]

    def work(index: int) -> None:
        got[index] = [replay(sessions[index], flows[index]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        for answers in got[index]:
            np.testing.assert_allclose(answers, want[index], atol=1e-5)


def test_a_missing_device_gives_way_only_if_that_is_allowed(bundle: Bundle, key: str) -> None:
    state = available(key.partition("-")[0])
    assert state.missing
    gone = state.missing[0]
    with pytest.raises(UnavailableDevice, match=r"no device .* here") as caught:
        open_session(bundle, key, device=gone.device)
    assert gone.why in str(caught.value)
    options = Options(device=gone.device, threads=1, allow_fallback=True)
    placement = open_session(bundle, key, options=options).placement()
    assert placement.device == "cpu"
    assert placement.detail["asked"] == gone.device
    assert gone.why in placement.detail["fallback"]


def test_an_unknown_form_names_those_there_are(bundle: Bundle, key: str) -> None:
    with pytest.raises(UserError, match=r"has no form 'quick'.*it has: "):
        open_session(bundle, key, options=Options(form="quick"))


@pytest.mark.parametrize("values", [{"batch": 0}, {"threads": 0}, {"hint": "speed"}], ids=["batch", "threads", "hint"])
def test_options_without_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"at least 1|unknown hint"):
        Options(**values)  # type: ignore[arg-type]


NO_COMPILED = pytest.mark.skipif(not HAS_COMPILED, reason="tflite-runtime has no compiled form")
FORMS = [pytest.param("litert-fp32", "compiled", marks=NO_COMPILED), ("openvino-fp32", "stateful"),
         ("openvino-int8", "stateful")]  # fmt: skip


@pytest.mark.parametrize(("key", "form"), FORMS)
def test_other_forms_answer_alike_and_forget_alike(bundle: Bundle, key: str, form: str) -> None:
    plain = open_session(bundle, key, threads=1)
    other = open_session(bundle, key, options=Options(threads=1, form=form))
    first, second = streams(2)
    want = replay(plain, first)
    replay(other, second)
    assert_close_enough(key, replay(other, first), want)
    assert other.placement().detail["form"] == form
    replay(other, second)
    assert_close_enough(key, replay(other, first), want)
    other.close()
    with pytest.raises(UserError, match="closed"):
        other.step(first[:1])


def test_a_throughput_session_answers_alike(bundle: Bundle, key: str) -> None:
    session = open_session(bundle, key, options=Options(threads=1, hint="throughput"))
    frames = streams(1)[0]
    assert_close_enough(key, replay(session, frames), replay(open_session(bundle, key, threads=1), frames))
