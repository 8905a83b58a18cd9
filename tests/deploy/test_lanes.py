"""Streams shared among threads answer as single streams do."""

import threading
from typing import cast

import numpy as np
import pytest

from deploy.runtimes import Options, open_session
from deploy.runtimes.base import Hint, StepSession
from deploy.runtimes.lanes import LaneSession, lanes_of
from deploy.verify import replay
from tests.deploy.conftest import KEYS, streams
from tests.deploy.test_conformance import assert_close_enough
from toolkit.bundle import Bundle
from toolkit.errors import UnavailableDevice, UserError


@pytest.mark.parametrize("key", KEYS)
def test_lanes_answer_as_single_streams_and_one_stream_forgets_alone(bundle: Bundle, key: str) -> None:
    session = open_session(bundle, key, options=Options(batch=3, threads=2, lanes=2))
    assert session.batch == 3
    assert session.placement().detail["lanes"] == "2"
    one, flows = open_session(bundle, key, threads=1), streams(3)
    got = np.stack([session.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
    for index, flow in enumerate(flows):
        assert_close_enough(key, got[:, index], replay(one, flow))
    session.reset(2)
    again = np.stack([session.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
    assert_close_enough(key, again[:, 2], got[:, 2])
    assert np.abs(again[0, :2] - got[0, :2]).max() > 1e-4


def test_lanes_refuse_what_one_session_refuses_and_close_twice(bundle: Bundle) -> None:
    before = threading.active_count()
    session = open_session(bundle, "litert-fp32", options=Options(batch=2, threads=2, hint="throughput"))
    with pytest.raises(UserError, match=r"shape \(1, 3, 32, 32\), the model takes \(2, 3, 32, 32\)"):
        session.step(streams(1)[0][:1])
    with pytest.raises(UserError, match="no stream 2"):
        session.reset(2)
    session.step(np.stack([flow[0] for flow in streams(2)]))
    session.close()
    session.close()
    assert threading.active_count() == before
    with pytest.raises(UserError, match="closed"):
        session.step(np.zeros((2, 3, 32, 32), np.float32))


@pytest.mark.parametrize(("batch", "lanes", "parts"), [(1, 4, [1]), (5, 2, [3, 2]), (3, 8, [1, 1, 1])])
def test_streams_are_shared_evenly(batch: int, lanes: int, parts: list[int]) -> None:
    shared = lanes_of(Options(batch=batch, lanes=lanes, threads=1), "onnxruntime", cores=2)
    assert [lane.batch for lane in shared] == parts
    assert {lane.threads for lane in shared} == {1}


@pytest.mark.parametrize(("runtime", "hint", "count"), [
    ("litert", "throughput", 2), ("litert", "latency", 1), ("openvino", "throughput", 1),
    ("onnxruntime", "throughput", 1),
])  # fmt: skip
def test_only_what_gains_from_lanes_gets_them_unasked(runtime: str, hint: Hint, count: int) -> None:
    assert len(lanes_of(Options(batch=4, hint=hint), runtime, cores=2)) == count


def test_no_lane_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="lanes 0: a whole number of at least 1"):
        Options(lanes=0)


def test_a_lane_that_does_not_open_leaves_no_other_open(bundle: Bundle) -> None:
    opened: list[StepSession] = []

    def open_one(options: Options) -> StepSession:
        if opened:
            raise UnavailableDevice("no memory is left")
        opened.append(cast(StepSession, open_session(bundle, "onnxruntime-fp32", options=options)))
        return opened[0]

    with pytest.raises(UnavailableDevice, match="no memory"):
        LaneSession(open_one, [Options(lanes=1), Options(lanes=1)])
    with pytest.raises(UserError, match="closed"):
        opened[0].reset()
