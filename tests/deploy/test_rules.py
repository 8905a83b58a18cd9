"""``vidon devices conformance``: every rule holds for every adapter here, and each catches a runtime that breaks it."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploy.rules
from deploy.conformance import conformance, examine
from deploy.export import export_bundle
from deploy.rules import RULES, Subject
from deploy.runtimes import Options, Streams, load, open_session
from tests.deploy.conftest import KEYS, SIDE, lively_student, streams
from tests.toolkit.test_cli import refused, vidon
from toolkit.bundle import Artefact, Bundle
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import UnavailableDevice
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig, TeacherConfig
from train.models.vit import TubeletViT

KEY = "litert-fp32"


@pytest.fixture
def subject(bundle: Bundle) -> Subject:
    return Subject(bundle, bundle.artefact(KEY), Options(threads=1), steps=200)


@pytest.mark.parametrize("key", [
    # These take a third of a second to open, thirty times.
    pytest.param(key, marks=pytest.mark.slow if key in ("torch-fp32", "openvino-int8") else ()) for key in KEYS
])  # fmt: skip
def test_every_rule_holds_for_every_adapter(bundle: Bundle, key: str) -> None:
    (result,) = conformance(bundle, [key], threads=1, steps=100)
    assert result.ok, result.text
    assert [finding.rule for finding in result.findings] == list(RULES)
    assert all(finding.passed for finding in result.findings), result.text


def exported(model: object, path: Path) -> Bundle:
    return export_bundle(
        model, path=path, name="other", labels=("a", "b", "c", "d"), preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=[], golden_frames=streams(1)[0], runtimes=("onnxruntime",), precisions=("fp32",), lineage={},
    )  # fmt: skip


def test_a_clip_model_behind_its_window_keeps_every_rule(tmp_path: Path) -> None:
    config = TeacherConfig(dim=32, depth=1, heads=2, tubelet=(2, 8, 8))
    model = TubeletViT(config, 4, (3, SIDE, SIDE), 4)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    (result,) = conformance(exported(model.eval(), tmp_path / "clip.vidon"), threads=1, steps=200)
    assert all(finding.passed for finding in result.findings), result.text


def test_a_model_without_memory_leaves_the_past_out(tmp_path: Path) -> None:
    student = lively_student(StudentConfig(width=0.25, depth=0.5, temporal="none"))
    (result,) = conformance(exported(student, tmp_path / "single.vidon"), threads=1, steps=200)
    left_out = [finding.rule for finding in result.findings if finding.passed is None]
    assert left_out == ["without reset the past counts"]
    assert result.ok, result.text


class Faulty:
    """A session that passes everything on; faults replace what they break."""

    def __init__(self, inner: Streams) -> None:
        self.inner, self.contract, self.batch = inner, inner.contract, inner.batch
        self.count, self.kept, self.maker = 0, list[Array](), threading.get_ident()

    def step(self, frame_BCHW: Array) -> Array:
        return self.inner.step(frame_BCHW)

    def reset(self, stream: int | None = None) -> None:
        self.inner.reset(stream)

    def close(self) -> None:
        self.inner.close()

    def placement(self) -> Placement:
        return self.inner.placement()


class Wrong(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        return self.inner.step(frame_BCHW) * np.float32(1.1)


class Elsewhere(Faulty):
    def placement(self) -> Placement:
        return self.inner.placement().model_copy(update={"device": "gpu"})


class Unforgetting(Faulty):
    def reset(self, stream: int | None = None) -> None:
        pass


class Forgetful(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        self.inner.reset()
        return self.inner.step(frame_BCHW)


class Borrowing(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        answer = self.inner.step(frame_BCHW)
        self.kept = self.kept or [answer]
        self.kept[0][...] = answer
        return self.kept[0]


class Mixing(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        return np.roll(self.inner.step(frame_BCHW), 1, axis=0)


class Sweeping(Faulty):
    def reset(self, stream: int | None = None) -> None:
        self.inner.reset()


class Swallowing(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        return self.inner.step(np.nan_to_num(frame_BCHW, posinf=0, neginf=0))


class Open(Faulty):
    def close(self) -> None:
        pass


class Homebound(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        if threading.get_ident() != self.maker:
            raise RuntimeError("made in another thread")
        return self.inner.step(frame_BCHW)


class Drifting(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        self.count += 1
        return self.inner.step(frame_BCHW) + np.float32(1e-4 * self.count)


class Leaking(Faulty):
    def step(self, frame_BCHW: Array) -> Array:
        self.kept.append(np.ones(100_000, np.float32))
        return self.inner.step(frame_BCHW)


FAULTS: dict[str, Callable[[Streams], Faulty]] = {
    "parity with the float model": Wrong,
    "it ran where it was asked to": Elsewhere,
    "reset makes a session forget": Unforgetting,
    "without reset the past counts": Forgetful,
    "answers stay as they were given": Borrowing,
    "a batch equals single streams": Mixing,
    "one stream of a batch forgets": Sweeping,
    "wrong frames are refused": Swallowing,
    "closing twice, use after close": Open,
    "sessions in threads of their own": Homebound,
    "no drift": Drifting,
    "no growth of memory": Leaking,
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_runtime_that_breaks_a_rule_is_caught(subject: Subject, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Faulty:
        return FAULTS[rule](open_session(*arguments, **options))

    monkeypatch.setattr(deploy.rules, "open_session", broken)
    (finding,) = examine(subject, [rule]).findings
    assert finding.passed is False, finding.line
    assert finding.detail


def test_sessions_that_share_their_state_are_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_session(subject.bundle, KEY)
    monkeypatch.setattr(deploy.rules, "open_session", lambda *arguments, **options: one)
    (finding,) = examine(subject, ["two interleaved sessions"]).findings
    assert finding.passed is False, finding.line
    assert "disturb each other" in finding.detail


def test_a_device_that_is_silently_another_is_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.rules, "open_session", lambda bundle, key, options: open_session(bundle, key))
    (finding,) = examine(subject, ["a missing device is refused"]).findings
    assert finding.passed is False, finding.line


def test_a_damaged_file_that_opens_is_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> Streams:
            return load(artefact.runtime).open(subject.bundle.root / artefact.folder, artefact, contract, options)

    monkeypatch.setattr(deploy.rules, "load", lambda name: Careless())
    (finding,) = examine(subject, ["damaged files are refused"]).findings
    assert finding.passed is False, finding.line
    assert finding.detail == "a file that is cut off was opened"


def test_a_runtime_that_steps_one_stream_leaves_batches_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.runtimes.tool_session import one_stream

    def single(bundle: Bundle, key: str, options: Options) -> Streams:
        one_stream("rknn", options)
        return open_session(bundle, key, options=options)

    monkeypatch.setattr(deploy.rules, "open_session", single)
    result = examine(subject, ["a batch equals single streams", "one stream of a batch forgets"])
    assert [finding.passed for finding in result.findings] == [None, None]
    assert "one stream at a time" in result.findings[0].detail
    assert not result.ok  # nothing held, because nothing was checked


def test_the_command_tells_every_rule_and_fails_with_the_first_broken_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("devices", "conformance", bundle.root, "--artefact", KEY, "--steps", "100", "--threads", "1")
    code, out, _ = vidon(*asked, "--json")
    assert code == 0
    told = json.loads(out)[KEY]
    assert told["ok"] is True
    assert [row["rule"] for row in told["rules"]] == list(RULES)
    monkeypatch.setattr(deploy.rules, "open_session", lambda *a, **options: Drifting(open_session(*a, **options)))
    code, out, _ = vidon(*asked)
    assert code == 2
    assert "no drift                           FAILED" in out
    assert "answers stay as they were given    passed" in out
    assert "no artefact 'litert-fp23'" in refused("devices", "conformance", bundle.root, "--artefact", "litert-fp23")


@pytest.mark.parametrize("keys", [["litert-fp32"], None])
def test_a_device_that_is_absent_is_told_once(bundle: Bundle, keys: list[str] | None) -> None:
    with pytest.raises(UnavailableDevice, match="'npu9' here"):
        conformance(bundle, keys, "npu9")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it compiles thirty times
def test_every_rule_holds_for_the_compiled_form_of_torch(bundle: Bundle) -> None:
    options = Options(threads=1, form="compiled")
    result = examine(Subject(bundle, bundle.artefact("torch-fp32"), options, steps=2000))
    assert all(finding.passed for finding in result.findings), result.text
